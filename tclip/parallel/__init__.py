"""Devices, processes and what is spread over them: mesh, sharding rules, gathered weights."""
