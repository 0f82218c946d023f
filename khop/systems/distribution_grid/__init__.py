"""Distribution grids: power flow, the built-in grids and their profiles, and voltage control by inverters."""
