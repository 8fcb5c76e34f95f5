"""From a checkpoint, on disk or on the hub, to weights on the device."""
