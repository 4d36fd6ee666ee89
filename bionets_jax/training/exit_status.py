"""What the exit status of launch.py says, to a scheduler and to the shell.

0    done, or there was nothing left to do
1    an error; the message says which. Nothing that was saved is lost
2    wrong usage of the command line
75   stopped on request (SIGTERM, Ctrl-C): queue it again, it goes on where it was
134  JAX has aborted the process because another one of the job was gone or silent (a shell's number for SIGABRT)
"""

INTERRUPTED = 75  # sysexits.h: EX_TEMPFAIL, try again later
