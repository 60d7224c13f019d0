"Keys of the training in real runs of a tiny model: optimizers, schedulers, clipping, smoothing, stopping early."
import math
from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from llmft.config.config import load_config
from llmft.core import UserError
from llmft.model.adapters import add_adapter
from llmft.model.attention import text_lengths, texts_apart
from llmft.model.base import choose_optimizer, load_base
from llmft.model.optimizers import OPTIMIZERS, UNSUPPORTED_OPTIMIZERS
from llmft.tokens.report import prepare_data
from llmft.tokens.tokenize import IGNORE_INDEX
from llmft.training.arguments import MEASURING_SCHEDULERS, check_training_options, unused_keys
from llmft.training.train import make_trainer
from tests.small import small_config


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp('keys'), max_steps=4, logging_steps=1, eval_steps=1, sample_prompts=0,
                        save_strategy='no', leakage='keep', learning_rate=.01)


@pytest.fixture(scope='module')
def data(base): return prepare_data(base)


@pytest.fixture
def train(base, data):
    def train(callbacks=(), data=data, **keys):
        "The trainer when it has trained."
        config = load_config(base, **keys)
        check_training_options(config)
        model = add_adapter(load_base(config), config)
        trainer = make_trainer(config, model, data, f'{config.output_dir}/checkpoints', callbacks=callbacks)
        trainer.train()
        return trainer
    return train


def logged(trainer, name): return [line[name] for line in trainer.state.log_history if name in line and 'loss' in line]


# optimizers

OPTIONAL = {name: spec.package for name, spec in OPTIMIZERS.items()
            if spec.package not in ('torch', 'transformers', 'bitsandbytes')}
NAMES = [o.value for o in OptimizerNames]


def test_each_optimizer_of_transformers_is_known():
    assert {*NAMES} == {*OPTIMIZERS} | {*UNSUPPORTED_OPTIMIZERS} and not {*OPTIMIZERS} & {*UNSUPPORTED_OPTIMIZERS}


@pytest.mark.parametrize('name', UNSUPPORTED_OPTIMIZERS)
def test_refused_with_the_reason(name, base):
    with pytest.raises(UserError, match=f'`{name}` cannot be used here: .* Take another'):
        check_training_options(load_config(base, optimizer=name))


@pytest.mark.parametrize('name', OPTIONAL)
def test_the_package_of_an_optimizer_is_named(name, base):
    if find_spec({'torch-optimi': 'optimi'}.get(OPTIONAL[name], OPTIONAL[name].replace('-', '_'))): return
    package = OPTIONAL[name]
    with pytest.raises(UserError, match=f'the package {package} is not installed. .*`pip install {package}`'):
        check_training_options(load_config(base, optimizer=name))


@pytest.mark.parametrize('name', sorted({choose_optimizer('cpu', n)[0] for n in OPTIMIZERS if n not in OPTIONAL}))
def test_optimizer_learns(name, train):
    "Three steps on the CPU; the paged ones run as those that are not paged."
    trainer = train(optimizer=name, max_steps=3, eval_strategy='no')
    assert trainer.state.global_step == 3 and all(map(math.isfinite, logged(trainer, 'loss')))
    changed = [p for name, p in trainer.model.named_parameters() if 'lora_B' in name]
    assert any(p.abs().sum() > 0 for p in changed) # they start at 0


# schedulers

OPTIONS = {'warmup_stable_decay': {'num_decay_steps': 1}, 'cosine_with_min_lr': {'min_lr_rate': .1},
           'cosine_warmup_with_min_lr': {'min_lr_rate': .1}, 'reduce_lr_on_plateau': {'patience': 0, 'threshold': 1.},
           'greedy': {'patience': 0, 'threshold': 1e9, 'factor': .5}}
RATES = { # of four steps, the first of which is the warm-up; as shares of `learning_rate`
    'constant': [1, 1, 1, 1], 'constant_with_warmup': [0, 1, 1, 1], 'linear': [0, 1, 2/3, 1/3],
    'cosine': [0, 1, .75, .25], 'polynomial': [0, 1, 2/3, 1/3], 'cosine_with_restarts': [0, 1, .75, .25],
    'warmup_stable_decay': [0, 1, 1, 1], 'cosine_with_min_lr': [0, 1, .775, .325],
    'cosine_warmup_with_min_lr': [1, .775, .325, .1], 'inverse_sqrt': [0, 1, .7071, .5774]}


@pytest.mark.parametrize('name', [s.value for s in SchedulerType])
def test_scheduler(name, train):
    trainer = train(lr_scheduler=name, lr_scheduler_kwargs=OPTIONS.get(name, {}), warmup_steps=1)
    rates = [rate/.01 for rate in logged(trainer, 'learning_rate')]
    if name in MEASURING_SCHEDULERS: # nothing is good enough, so it falls; `greedy` may rise before
        assert rates[0] == 1 and rates[-1] < 1 and (name == 'greedy' or rates == sorted(rates, reverse=True))
    else: assert rates == pytest.approx(RATES[name], abs=1e-3)


def test_the_greedy_rate_may_fall_below_a_thousandth(train):
    trainer = train(lr_scheduler='greedy', lr_scheduler_kwargs=OPTIONS['greedy'], learning_rate=1e-4)
    assert logged(trainer, 'learning_rate')[-1] < 1e-4


@pytest.mark.parametrize('keys, message', [
    (dict(lr_scheduler='constant', lr_scheduler_kwargs={'power': 2}), '`constant` has no `power`. It reads none'),
    (dict(lr_scheduler='constant_with_warmup', lr_scheduler_kwargs={'a': 2}), '`constant_with_warmup` has no `a`'),
    (dict(lr_scheduler_kwargs={'num_cycle': 2}), '`cosine` has no `num_cycle`. Did you mean `num_cycles`'),
    (dict(lr_scheduler='greedy', lr_scheduler_kwargs={'patiens': 2}), 'Did you mean `patience`'),
    (dict(lr_scheduler='greedy', lr_scheduler_kwargs={'factor': 2.}), 'Factor should be < 1.0'),
    (dict(lr_scheduler='reduce_lr_on_plateau', lr_scheduler_kwargs={'mode': 'best'}), 'mode best is unknown'),
    (dict(lr_scheduler='warmup_stable_decay'), '`num_decay_steps` is missing'),
    (dict(lr_scheduler='warmup_stable_decay', lr_scheduler_kwargs={'num_decay_steps': 1, 'decay_type': 'step'}),
        'Unknown decay type'),
    (dict(lr_scheduler='reduce_lr_on_plateau', eval_strategy='no'), 'it looks at the held-out loss'),
    (dict(lr_scheduler='greedy', test_datasets=None), 'it looks at the held-out loss'),
])
def test_wrong_schedule(keys, message, base):
    with pytest.raises(UserError, match=message): check_training_options(load_config(base, **keys))


def test_a_warm_up_without_effect_is_said(base):
    def unused(**keys):
        lines = unused_keys(load_config(base, **keys), type('Hardware', (), {'device': 'cpu'}))
        return any('`warmup_' in line for line in lines)
    for name in ('constant', *MEASURING_SCHEDULERS): assert unused(lr_scheduler=name, warmup_steps=3)
    assert unused(lr_scheduler='constant', warmup_ratio=.1)
    assert not unused(lr_scheduler='constant_with_warmup', warmup_steps=3) and not unused(warmup_ratio=.1)


# warm-up and clipping

@pytest.mark.parametrize('keys, n', [(dict(warmup_steps=2), 2), (dict(warmup_ratio=.5), 2), (dict(warmup_steps=0), 0)])
def test_warm_up(keys, n, train):
    rates = logged(train(lr_scheduler='constant_with_warmup', **keys), 'learning_rate')
    assert rates == pytest.approx([.01*min(i/max(n, 1), 1) if n else .01 for i in range(4)])


@pytest.mark.parametrize('limit', [1.0, .1, 0])
def test_clipping(limit, train):
    "Plain SGD moves the weights by the rate times the length of the gradient, if nothing shortens it."
    trainer = train(max_grad_norm=limit, optimizer='sgd', max_steps=1, lr_scheduler='constant', eval_strategy='no')
    moved = torch.cat([p.flatten() for n, p in trainer.model.named_parameters() if 'lora_B' in n]).norm().item()
    norm = logged(trainer, 'grad_norm')[0] if limit else None
    if limit: assert moved == pytest.approx(.01*min(norm, limit), rel=1e-3)
    else: assert moved > .01*1.01


# label smoothing

def smoothed_mean(trainer, batches, smoothing):
    "The loss of the tokens of one step, from all scores, as PyTorch computes it."
    model, total, n = trainer.model, 0, 0
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k != 'labels'}
        with texts_apart(text_lengths(batch['position_ids'])):
            scores = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
        labels = batch['labels'][:, 1:].flatten()
        total += cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, label_smoothing=smoothing, reduction='sum')
        n += (labels != IGNORE_INDEX).sum()
    return (total/n).item()


@pytest.mark.parametrize('keys', [dict(), dict(sample_packing=True), dict(gradient_accumulation_steps=2),
    dict(chunked_cross_entropy=False), dict(sample_packing=True, gradient_accumulation_steps=2, micro_batch_size=1),
    dict(adapter='full')], ids=str)
def test_label_smoothing(keys, base, data, monkeypatch):
    "The first loss of a run is PyTorch's over the learned tokens of the step; the held-out loss is the plain one."
    config = load_config(base, label_smoothing_factor=.2, max_steps=1, **keys)
    if 'sample_packing' in keys: data = prepare_data(config)
    trainer = make_trainer(config, add_adapter(load_base(config), config), data, config.output_dir)
    batches, step = [], trainer.compute_loss
    def note(model, inputs, *args, **kwargs):
        if model.training: batches.append(dict(inputs))
        return step(model, inputs, *args, **kwargs)
    monkeypatch.setattr(trainer, 'compute_loss', note)
    torch.manual_seed(0)
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    first = logged(trainer, 'loss')[0]
    heldout = next(line['eval_loss'] for line in trainer.state.log_history if 'eval_loss' in line) # before training
    trainer.model.load_state_dict(weights)
    trainer.model.eval()
    n = config.gradient_accumulation_steps
    with torch.no_grad():
        assert first == pytest.approx(smoothed_mean(trainer, batches[-n:], .2), rel=1e-4)
        assert abs(first - smoothed_mean(trainer, batches[-n:], 0)) > .003
        rows = [trainer._prepare_inputs(batch) for batch in trainer.get_eval_dataloader()]
        assert heldout == pytest.approx(smoothed_mean(trainer, rows, 0), rel=1e-4)


@pytest.mark.parametrize('value', [1, -.1, 1.5])
def test_wrong_smoothing(value, base):
    with pytest.raises(UserError, match='label_smoothing_factor'): load_config(base, label_smoothing_factor=value)


def test_smoothing_a_mixture_of_experts(tmp_path):
    "Its auxiliary loss is added as without smoothing; a factor of nearly 0 changes nothing."
    from transformers import MixtralConfig, MixtralForCausalLM
    from tests.small import SIZES
    from tests.tiny import save_tiny, small_tokenizer
    model = save_tiny(tmp_path/'model', MixtralForCausalLM, MixtralConfig, small_tokenizer(), num_local_experts=4,
                      router_aux_loss_coef=.5, **SIZES)
    def loss(**keys):
        config = small_config(tmp_path, base_model=str(model), adapter='full', sample_prompts=0, leakage='keep',
                              gradient_accumulation_steps=2, logging_steps=1, eval_strategy='no', **keys)
        trainer = make_trainer(config, add_adapter(load_base(config), config), prepare_data(config), tmp_path/'out')
        trainer.train()
        return logged(trainer, 'loss')[0]
    assert loss(label_smoothing_factor=1e-9) == pytest.approx(loss(), rel=1e-5)


# stopping early

def measured(losses): # a callback class: the held-out losses are these, whatever the model says
    def evaluate(self, *args, **kwargs):
        n = sum('eval_loss' in line for line in self.state.log_history)
        metrics = {'eval_loss': losses[min(n, len(losses) - 1)]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
    return evaluate


FALLING = [5, 4, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4, 3.3] # the first one is from before training


@pytest.mark.parametrize('threshold, last', [(0, 8), (.05, 8), (.2, 3), (2, 3)])
def test_early_stopping_threshold(threshold, last, base, data, monkeypatch):
    config = load_config(base, early_stopping_patience=2, early_stopping_threshold=threshold, max_steps=8,
                         save_strategy=None)
    trainer = make_trainer(config, add_adapter(load_base(config), config), data, f'{config.output_dir}/{threshold}')
    monkeypatch.setattr(type(trainer), 'evaluate', measured(FALLING))
    trainer.train()
    assert trainer.state.global_step == last


def test_patience_counts_on_after_a_break(base, data, monkeypatch, tmp_path):
    losses = [5, 4, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.7]
    config = load_config(base, early_stopping_patience=3, max_steps=8, save_strategy=None, save_steps=1)
    def steps(folder, resume=None, stop=None):
        trainer = make_trainer(config, add_adapter(load_base(config), config), data, folder)
        monkeypatch.setattr(type(trainer), 'evaluate', measured(losses))
        if stop: trainer.args.max_steps = stop
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step
    assert steps(tmp_path/'whole') == 4
    assert steps(tmp_path/'broken', stop=3) == 3
    assert steps(tmp_path/'broken', resume=str(tmp_path/'broken/checkpoint-3')) == 4


@pytest.mark.parametrize('key', ['early_stopping_threshold', 'max_grad_norm', 'warmup_steps'])
def test_below_zero_is_refused(key, base):
    with pytest.raises(UserError, match=key): load_config(base, **{key: -1})
