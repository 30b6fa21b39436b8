"""The first program that runs on a machine: `python3 controlplane/embedded/first_run.py <command>`.

Understood by any Python 3, so that an old one answers with the line that mends it and not with a syntax error; looks
for a newer one first. All work is in `virtual_environment.py`.
"""

import os
import shutil
import subprocess
import sys

FROM = (3, 11)
BELOW = (3, 14)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUESTION = "import sys; sys.exit(not (%r <= sys.version_info[:2] < %r))" % (FROM, BELOW)


def suits(command: str) -> bool:
    """Whether that command is a Python of the right version; a version manager's empty shim is not."""
    try:
        return subprocess.call([command, "-c", QUESTION], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def main() -> int:
    """Hand over to a suitable Python, or say how to get one."""
    if not FROM <= sys.version_info[:2] < BELOW:
        for minor in range(BELOW[1] - 1, FROM[1] - 1, -1):
            found = shutil.which("python3.%d" % minor)
            if found and suits(found):
                os.execv(found, [found] + sys.argv)
        print("FAIL python: this is %d.%d, needed is 3.11, 3.12 or 3.13" % sys.version_info[:2])
        print("     mend: install one of them, as `apt-get install python3.11 python3.11-venv`, and start this again")
        return 1
    sys.path[0] = ROOT
    from controlplane.embedded import virtual_environment

    return virtual_environment.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
