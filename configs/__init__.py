"""Config files for launch.py; `common` holds what several of them share."""
