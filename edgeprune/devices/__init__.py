"""Devices: transports, the agent, measurement and installation."""
