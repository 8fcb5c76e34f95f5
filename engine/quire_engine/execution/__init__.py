"""Running steps on a device."""
