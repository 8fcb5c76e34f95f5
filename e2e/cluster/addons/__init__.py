"""What a scenario may ask for beyond the node: real autoscaling, monitoring and scheduling of groups."""
