"""Real asynchronous training: the same transformations on a live parameter server.

What a server does with a push is plain Python and JAX and knows nothing of Ray; the package `ray`
in here puts it into Ray's actors.
"""
