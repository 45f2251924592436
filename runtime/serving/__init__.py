"""Streams on several devices or machines: what runs on one device (`worker`), and Ray Serve around it.

Only `service` needs Ray (the extra `[serve]`).
"""
