"""`python -m controlplane <command>`: Django's management entry."""

import os
import sys

from django.core.management import execute_from_command_line


def main() -> None:
    """Run a management command with our settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    execute_from_command_line(["controlplane", *sys.argv[1:]])


if __name__ == "__main__":
    main()
