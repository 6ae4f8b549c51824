"""One module a command of ``cfpo``: ``run(arguments, write)``. Heavy imports of a command are at the top of its module,
which the command line imports only when that command is asked for.
"""
