from contextlib import contextmanager
def resolve_model(n, revision=None): return '/tmp/smol' if n.startswith('builtin/') else n
@contextmanager
def hub_errors(name): yield
