"""A fleet of prefill and decode processes in simulated time.

What decides runs as it is in the product: handshake, farewell and announcements of the control thread,
slots, windows of staging, liveness, the planner. What takes time is modelled: processors, networks, devices
(costs.py).
"""
