"""Files by path, in a folder or in object storage. What they are, and which are kept, is their writer's business."""
