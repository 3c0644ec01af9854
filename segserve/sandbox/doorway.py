"""Runs in a sandbox that has a network of its own, before the executor: makes the sockets on which the gate listens.

    python doorway.py DOOR PROCESSES PORT[,PORT…] COMMAND…

A socket belongs to the network in which it was made. So these listen in the sandbox, and whoever gets them over DOOR (a
unix socket) answers outside: nothing has to be copied between the two. PROCESSES bounds processes and threads; 0 is no
bound. Then this process becomes COMMAND.

A script of its own, for whatever Python 3 an image has.
"""

import array
import os
import resource
import socket
import sys


def main(door: str, processes: str, ports: str, *command: str) -> None:
    """Hand out the sockets and become the command."""
    listening = []
    for port in ports.split(","):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.bind(("127.0.0.1", int(port)))
        one.listen(128)
        listening.append(one)
    numbers = array.array("i", [one.fileno() for one in listening])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.connect(door)
        channel.sendmsg([b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        channel.recv(1)  # until they are taken
    if int(processes):
        resource.setrlimit(resource.RLIMIT_NPROC, (int(processes), int(processes)))
    os.execvp(command[0], command)  # noqa: S606 - the words are those of MLflow's own start


if __name__ == "__main__":
    main(*sys.argv[1:])
