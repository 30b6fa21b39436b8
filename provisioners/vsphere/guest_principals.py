"""Says which principals of an SSH certificate count: none for one that was taken back. sshd asks at each login.

The program is sent to machines as text and needs the standard library only. Arguments: the address that tells what was
taken back, the file with the machine's principals, the certificate's serial, and perhaps a file with the authorities
that the address is checked with; see sshd_config(5), AuthorizedPrincipalsCommand.
Where the control plane does not answer, the certificate's own end has to do: it lasts minutes, and the control plane is
nobody's way in.
"""

import http.client
import ssl
import sys
import urllib.request

WAIT_S = 3
MOST = 1 << 22
"""Of bytes: more certificates than one tenant's people can ask for before the first ones end."""


def main(arguments: list[str]) -> int:
    """Print the principals, or nothing."""
    address, file, serial, *authority = arguments
    try:
        trust = ssl.create_default_context(cafile=authority[0] if authority else None)
        # sshd's configuration, which is root's, names the address
        with urllib.request.urlopen(address, timeout=WAIT_S, context=trust) as answer:  # noqa: S310
            told = answer.read(MOST + 1)
        if len(told) > MOST:
            return 0  # what stands beyond may be this one
        gone = told.decode().splitlines()
    except (OSError, ValueError, http.client.HTTPException):
        gone = []
    if f"serial: {serial}" not in gone:
        with open(file, encoding="utf-8") as principals:  # noqa: PTH123 - one import less at each login
            sys.stdout.write(principals.read())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
