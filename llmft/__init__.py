__version__ = "0.1.0"


def _names(): # each public function and class, and the module that has it; a module's own name stays the module's
    from ._modidx import d
    modules = {module.rpartition('.')[2] for module in d['syms']}
    names = {symbol.removeprefix(module + '.'): module for module, symbols in d['syms'].items() for symbol in symbols}
    return {name: module for name, module in names.items() if '.' not in name and name[0] != '_' and name not in modules}


def __getattr__(name): # `from llmft import finetune` imports `llmft.train` only then, so that `import llmft` stays quick
    from importlib import import_module
    module = None if name.startswith('_') else _names().get(name)
    if module is None: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(module), name)


def __dir__(): return sorted([*globals(), *_names()])
