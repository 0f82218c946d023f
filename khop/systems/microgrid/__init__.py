"""Islanded microgrids of droop-controlled inverters and their secondary voltage control."""
