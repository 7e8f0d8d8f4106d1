"""Asynchronous SVRG: epochs around an anchor, whose full gradient steadies every stale one."""
