"""The agent: it runs on the device and measures there. `devices.bundle` puts it together into one file."""
