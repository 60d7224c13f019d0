"Fine-tune large language models from one YAML file, with notebooks that show every step."
__version__ = "0.1.0"

from llmft.core import share_cores, silence_warnings

# before the libraries are imported that would say something or read the environment
silence_warnings()
share_cores()

# What a user needs, by the module that holds it. All other names can be imported from their modules.
_PUBLIC = {
    'core': 'UserError',
    'config.config': 'load_config Config save_config find_config list_recipes config_reference',
    'config.keys': 'DatasetConfig',
    'config.convert': 'convert',
    'prompts.turns': 'Turn RowError prompt_formats register_format row_to_turns generation_prompt render',
    'prompts.formats': 'PromptTemplate register_template',
    'prompts.chat': 'list_chat_templates',
    'data.sources': 'load_rows',
    'data.dedup': 'prepare_rows',
    'tokens.encode': 'encode_turns',
    'tokens.tokenize': 'load_tokenizer tokenize_dataset show_mask Mask length_report',
    'tokens.packing': 'pack',
    'tokens.findings': 'findings_reference',
    'tokens.report': 'data_report DataReport prepare_data',
    'model.gpus': 'known_gpus',
    'model.base': 'detect_hardware load_base default_learning_rate',
    'model.adapters': 'add_adapter parameter_report',
    'memory.plan': 'plan_memory MemoryPlan compare_gpus',
    'memory.fit': 'fit_to_gpu save_fitted_config',
    'memory.plots': 'plot_memory plot_gpus',
    'inference.generate': 'generate stream_generate',
    'inference.chat': 'Chat',
    'inference.load': 'load_run',
    'inference.ui': 'chat_page',
    'evaluation.scores': 'score_run score_model Scores BeforeAfter extract_code pass_at_k',
    'evaluation.sandbox': 'run_code sandbox_report',
    'evaluation.evaluate': 'evaluate',
    'evaluation.measures': 'Evaluation Measure rows_needed',
    'export.merge': 'merge_adapter',
    'export.check': 'check_merge',
    'export.gguf': 'export_gguf',
    'export.ollama': 'write_modelfile',
    'export.card': 'model_card',
    'export.push': 'push_to_hub',
    'training.run': 'Run',
    'training.train': 'finetune make_trainer',
    'training.compare': 'compare_runs',
    'training.sweep': 'sweep Sweep',
    'training.find_lr': 'find_lr',
    'training.stored_grids': 'read_grid read_results of_seeds plot_of_seeds seeds_table',
    'commands.check': 'check_run Check preview_rows',
    'commands.demo': 'run_demo',
    'plots': 'plot_loss plot_lengths plot_packing plot_scores smooth use_small_figures',
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [*_MODULE_OF]


def __getattr__(name): # a module is imported when a name of it is asked for, so that `import llmft` stays quick
    if name not in _MODULE_OF: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_MODULE_OF[name]}'), name)


def __dir__(): return sorted({*globals(), *__all__})
