"What `check` accepts, `train` runs: what the libraries refuse is refused before, in one message that names the key."
import subprocess, sys
import pytest
from llmft.commands.check import check_run
from llmft.config.config import load_config
from llmft.core import UserError
from llmft.model.base import choose_learning_rate, choose_optimizer, detect_hardware, usual_learning_rate
from llmft.model.gpus import check_architecture
from llmft.training.arguments import _gpu_note, _learning_rate_note, check_training_options
from llmft.training.train import finetune
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('accepted')
    model = save_tiny(folder/'model', tokenizer=small_tokenizer())
    rows = save_rows(folder/'rows.jsonl', alpaca_rows(24))
    def config(**keys): return tiny_config(model, rows, folder/'run', **{'adapter': 'lora', 'max_steps': 1} | keys)
    return config


REFUSED = {
    'an adapter on the output layer `lm_head` would learn nothing': dict(lora_target_modules=['q_proj', 'lm_head']),
    'the output layer `lm_head` would learn nothing': dict(lora_target_modules='.*(q_proj|lm_head)'),
    r'\[0, 5\] does not fit. The model has 2 layers': dict(peft_layer_replication=[[0, 5]]),
    r'\[1, 1\] does not fit': dict(peft_layer_replication=[[1, 1]]),
    'there is no token 999999': dict(peft_trainable_token_indices=[999999]),
    'there is no token 888888': dict(peft_trainable_token_indices={'embed_tokens': [888888]}),
    '`gradient_checkpointing_kwargs`: .*nope': dict(gradient_checkpointing_kwargs={'nope': 1}),
    '`gradient_checkpointing_kwargs`: .*context_fn': dict(
        gradient_checkpointing_kwargs={'use_reentrant': True, 'context_fn': 1}),
    '`adamw_torch` has no `nope`': dict(optim_args={'nope': 1}),
    '`adamw_torch` has no `beta1`': dict(optim_args='beta1=0.8'),
    '`ademamix` has no `beta4`. Did you mean `beta': dict(optimizer='ademamix', optim_args={'beta4': .9}),
    '`model_kwargs`: .* no `use_cach`. Did you mean `use_cache`': dict(model_kwargs={'use_cach': False}),
    '`model_kwargs`: .* no `banana`': dict(model_kwargs={'banana': 1}),
    'model_kwargs: `torch_dtype` has a key of its own': dict(model_kwargs={'torch_dtype': 'auto'}),
    'model_kwargs: `state_dict` is not taken': dict(model_kwargs={'state_dict': {}}),
    '`device_map`: .*nowhere': dict(device_map='nowhere'),
    '`device_map`: .*moon': dict(device_map={'model': 'moon'}),
    'bnb_config_kwargs: .*bnb_4bit_quant_type: fp5': dict(
        adapter='qlora', bnb_config_kwargs={'bnb_4bit_quant_type': 'fp5'}),
    'bnb_config_kwargs: .*bnb_4bit_use_double_quant': dict(
        adapter='qlora', bnb_config_kwargs={'bnb_4bit_use_double_quant': 'maybe'}),
    'bnb_config_kwargs: .*float17': dict(adapter='qlora', bnb_config_kwargs={'bnb_4bit_compute_dtype': 'float17'}),
}


@pytest.mark.parametrize('message', REFUSED)
def test_refused_by_check(run, message):
    with pytest.raises(UserError, match=message): check_run(run(**REFUSED[message]))


@pytest.mark.parametrize('keys', [
    dict(load_best_model_at_end=True, val_set_size=4, evals_per_epoch=2, saves_per_epoch=3),
    dict(early_stopping_patience=1, val_set_size=4, eval_strategy='no'),
    dict(save_strategy='best', val_set_size=4), dict(gradient_checkpointing_kwargs={'use_reentrant': True}),
    dict(lora_modules_to_save=['lm_head'])], ids=str)
def test_what_check_accepts_is_trained(run, keys):
    config = run(**keys)
    check_run(config)
    assert finetune(config, overwrite=True, say=None).last('loss')


def test_a_wrong_column_is_refused_without_torch(run, tmp_path):
    "Nor is peft imported for a file that is not there."
    wrong = save_rows(tmp_path/'wrong.jsonl', [{'a': 'b'}]*3)
    code = '''
import sys
from llmft.commands.check import check_run
from llmft.core import UserError
for path in sys.argv[2:]:
    try: check_run({'base_model': sys.argv[1], 'datasets': [{'path': path, 'type': 'alpaca'}], 'output_dir': 'x'})
    except UserError: pass
    else: raise SystemExit('accepted')
print({'torch', 'peft', 'trl'} & {*sys.modules})
'''
    command = [sys.executable, '-c', code, run().base_model, wrong, str(tmp_path/'none.jsonl')]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == 'set()'


@pytest.mark.parametrize('adapter,rate', [('lora', 1.3e-3), ('qlora', 1.3e-3), ('full', 1.3e-4)])
def test_a_rate_that_is_not_given_follows_from_width_and_kind(adapter, rate):
    config = load_config({'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': 'x'}], 'adapter': adapter})
    hardware = detect_hardware(config)
    assert config.learning_rate is None and hardware.learning_rate == usual_learning_rate(config) == rate
    assert f'learning rate: {rate:g}, because' in str(hardware) and 'the model is 576 wide' in str(hardware)
    given = detect_hardware(load_config(config, learning_rate=.5))
    assert given.learning_rate == .5 and 'learning rate' not in str(given)


def test_a_model_that_cannot_be_read_has_the_rate_of_seven_billion():
    rate, reason = choose_learning_rate(None, 'full', None)
    assert rate == 2.9e-5 and 'the width of the model is not known' in reason


@pytest.mark.parametrize('keys,word', [
    (dict(adapter='full', learning_rate=5e-3), 'may jump'), (dict(adapter='full', learning_rate=1e-4), None),
    (dict(learning_rate=1e-6), 'little is learned'), (dict(learning_rate=.1), 'may jump'),
    (dict(learning_rate=1e-3), None)])
def test_a_rate_far_from_the_usual_gets_a_note(keys, word):
    smallest = {'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': 'x'}]}
    note = _learning_rate_note(load_config(smallest, **keys))
    assert (note is None) if word is None else word in note


def test_gpus_that_are_not_used_are_said(run):
    assert '1 more GPU is there' in _gpu_note(run(), 1) and '3 more GPUs are there' in _gpu_note(run(), 3)
    assert _gpu_note(run(), 0) is _gpu_note(run(device_map='auto'), 1) is None


@pytest.mark.parametrize('name', ['adamw_8bit', 'paged_adamw_8bit', 'lion_8bit', 'adamw_bnb_8bit'])
def test_no_optimizer_of_eight_bits_on_apple_gpus(name):
    assert choose_optimizer('mps', name)[0] == 'adamw_torch'
    assert choose_optimizer('cuda', name) == (name, None)


@pytest.mark.parametrize('capability,runs', [((6, 0), False), ((6, 1), False), ((7, 0), False), ((7, 5), True),
                                             ((8, 9), True), ((9, 0), True), ((12, 1), True)])
def test_a_gpu_that_this_torch_cannot_run(capability, runs):
    built = ['sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120']
    if runs: return check_architecture('a card', capability, built)
    with pytest.raises(UserError, match='has no code for it'): check_architecture('a card', capability, built)


def test_options_that_exist_are_accepted(run):
    check_training_options(run(optimizer='ademamix', optim_args={'beta3': .99, 't_alpha': 10}, device_map='auto',
                               model_kwargs={'use_cache': False}))


def test_a_note_is_said_once(run):
    check = check_run(run(lora_target_modules=['q_proj', 'nowhere']))
    assert any('nowhere' in note for note in check.notes)
    assert all(str(check).count(note) == 1 for note in check.notes)


def test_check_counts_what_the_run_counts(run, tmp_path):
    config = run(adapter='qlora', lora_r=4, output_dir=str(tmp_path/'run'))
    check, said = check_run(config), []
    finetune(config, say=lambda line: said.append(str(line)), force=True)
    assert str(check.parameters) in said
    assert str(check.parameters) in str(check)
