"""python -m accel_lab: see ``accel_lab.command_line``."""

from accel_lab.command_line import main

if __name__ == "__main__":
    main()
