"""What has already been written: the deliverables whose texts are nearest to one."""
