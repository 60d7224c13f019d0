import hashlib, itertools, json, os, signal, subprocess, sys, time
import pytest, torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from llmft.training import train
from llmft.config.config import DatasetConfig, load_config, save_config
from llmft.core import UserError
from llmft.inference.generate import prompt_ids
from llmft.inference.load import load_run
from llmft.model.adapters import add_adapter
from llmft.model.base import detect_hardware, load_base
from llmft.prompts.turns import row_to_turns
from llmft.tokens.encode import IGNORE_INDEX, encode_turns
from llmft.tokens.tokenize import load_tokenizer
from llmft.model.loss import chunked_cross_entropy
from llmft.tokens.packing import pack
from llmft.tokens.report import prepare_data
from llmft.training.train import Collator, finetune, make_trainer
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('training')

@pytest.fixture(scope='module')
def model(folder, small): return save_tiny(folder/'model', tokenizer=small)

@pytest.fixture(scope='module')
def small(): return small_tokenizer()

@pytest.fixture(scope='module')
def rows(folder): return save_rows(folder/'rows.jsonl', alpaca_rows(40))

@pytest.fixture(scope='module')
def tokenizer():
    datasets = [{'path': 'builtin/python-evol-1k'}]
    return load_tokenizer(load_config({'base_model': 'builtin/smollm2-135m', 'datasets': datasets}))

@pytest.fixture
def config(model, rows, tmp_path): return tiny_config(model, rows, tmp_path/'run')

@pytest.fixture
def exact(config): return load_config(config, adapter='lora', load_in_4bit=False, bf16=False) # all in 32 bits

def losses(run): return {m['step']: m['loss'] for m in run.metrics if 'loss' in m}

def adapter(run): return run.path/'adapter'/'adapter_model.safetensors'

def sha(path): return hashlib.sha256(path.read_bytes()).hexdigest()

def stirred(model): # the second LoRA matrix starts at 0, which would hide most mistakes
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if 'lora_B' in name: p.data.normal_(std=.1)
    return model

def value_and_gradient(model, loss): # loss: function
    model.zero_grad()
    value = loss()
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

def assert_same(a, b, value=1e-5, gradient=1e-4):
    assert a[0] == pytest.approx(b[0], rel=value)
    assert (a[1] - b[1]).norm() < gradient * b[1].norm()


# -- the model

def test_layers_are_nf4_and_the_adapter_is_float32(config):
    from bitsandbytes.nn import Linear4bit
    model = add_adapter(load_base(config), config)
    base = model.get_base_model()
    linear = {n for n, m in base.named_modules() if isinstance(m, Linear4bit)}
    assert len(linear) == 2 * 7 and not any('lm_head' in n or 'norm' in n for n in linear)
    for m in base.modules():
        if not isinstance(m, Linear4bit): continue
        state = m.weight.quant_state
        assert (state.quant_type, state.nested, m.weight.dtype) == ('nf4', True, torch.uint8)
    def trained(): return {(n.split('.')[-3], p.dtype) for n, p in model.named_parameters() if p.requires_grad}
    expected = {('lora_A', torch.float32), ('lora_B', torch.float32)}
    assert trained() == expected
    data = prepare_data(config)
    make_trainer(config, model, data, config.output_dir)
    assert trained() == expected
    args = SFTConfig(
        config.output_dir, dataset_kwargs={'skip_prepare_dataset': True}, report_to='none', use_cpu=True, bf16=False)
    SFTTrainer(model=model, train_dataset=data.train, processing_class=data.tokenizer, args=args)
    assert trained() == {('lora_A', torch.bfloat16), ('lora_B', torch.bfloat16)} # what TRL does by itself


def test_using_the_model_does_not_change_its_gradients(config):
    from bitsandbytes.nn import Linear4bit
    from bitsandbytes.functional import has_avx512bf16
    config = load_config(config, bf16=True)
    model = stirred(add_adapter(load_base(config), config)).train()
    batch = Collator(0)([prepare_data(config).train[i] for i in range(2)])
    def gradient(): return value_and_gradient(model, lambda: chunked_cross_entropy(model, batch))
    def use():
        model.eval()
        with torch.no_grad(): model(batch['input_ids'])
        model.train()
    fresh = gradient()
    use()
    used = gradient()
    assert used[0] == fresh[0] and torch.equal(used[1], fresh[1])
    if not has_avx512bf16(): return
    for m in model.modules():
        if isinstance(m, Linear4bit): m.support_avx512bf16_for_cpu = True # as bitsandbytes has it
    use()
    try: broken = gradient()
    except RuntimeError: return
    assert (broken[1] - fresh[1]).norm() > .1 * fresh[1].norm()


def test_whole_modules_train_too(config):
    finetune(load_config(config, lora_modules_to_save=['lm_head'], max_steps=2), say=None)
    saved = load_file(config.output_dir + '/adapter/adapter_model.safetensors')
    assert any('lm_head' in name for name in saved)


# -- the loss

@pytest.fixture
def both_ways(exact): # a model, rows one by one, the same rows packed
    data = prepare_data(load_config(exact, sample_packing=False))
    return stirred(add_adapter(load_base(exact), exact)), list(data.train), list(pack(data.train, exact.sequence_len))


def test_packing_changes_nothing(both_ways):
    model, single, packed = both_ways
    assert len(packed) < len(single) and any(len(r['seq_lengths']) > 2 for r in packed)
    batch = Collator(0)(packed)
    a, b = (value_and_gradient(model, lambda: chunked_cross_entropy(model, b)) for b in (Collator(0)(single), batch))
    assert_same(b, a)
    mixed = batch | {'position_ids': torch.arange(batch['input_ids'].shape[1]).expand_as(batch['input_ids'])}
    assert chunked_cross_entropy(model, mixed).item() != pytest.approx(a[0], rel=1e-3) # the rows see each other


@pytest.fixture(scope='module')
def gemma(folder, small):
    from transformers import Gemma2Config, Gemma2ForCausalLM
    return save_tiny(folder/'gemma', Gemma2ForCausalLM, Gemma2Config, small,
        head_dim=16, query_pre_attn_scalar=16, sliding_window=24)

def test_gemma_2_gets_eager(gemma, config): # sdpa would leave out the limit on its attention scores
    for kernel in ('auto', 'sdpa', 'flash_attention_2'):
        hw = detect_hardware(load_config(config, base_model=str(gemma), attn_implementation=kernel))
        assert hw.attention == 'eager' and any('has no `sdpa`' in c.why for c in hw.choices)


def texts_of(rows):
    "(row, start, stop) of each text in each row."
    for i, row in enumerate(rows):
        start = 0
        for n in row.get('seq_lengths') or [len(row['input_ids'])]:
            yield i, start, start + n
            start += n

@pytest.mark.parametrize('kind', ['llama sdpa', 'llama eager', 'gemma 2'])
def test_packed_logits_and_gradients(kind, exact, gemma):
    "Every kernel and layout that can be chosen on a CPU; Gemma 2 also has windows of attention and limits its scores."
    is_gemma = kind == 'gemma 2'
    config = load_config(exact, **{'base_model': str(gemma)} if is_gemma else {'attn_implementation': kind.split()[1]})
    data = prepare_data(load_config(config, sample_packing=False))
    model = stirred(add_adapter(load_base(config), config))
    assert model.config._attn_implementation == ('sdpa' if kind == 'llama sdpa' else 'eager')
    single, packed = list(data.train)[:12], list(pack(data.train.select(range(12)), config.sequence_len))
    def run(rows, mix=False): # logits of each text, by its ids; gradient of all
        batch = Collator(0)(rows)
        if mix: batch['position_ids'] = torch.arange(batch['input_ids'].shape[1]).expand_as(batch['input_ids'])
        model.zero_grad()
        logits = model(batch['input_ids'], position_ids=batch['position_ids'], use_cache=False).logits
        scores, labels = logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten()
        torch.nn.functional.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction='sum').backward()
        by_ids = {tuple(rows[i]['input_ids'][a:b]): logits[i, a:b].detach() for i, a, b in texts_of(rows)}
        return by_ids, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    (a, ga), (b, gb), (c, gc) = run(single), run(packed), run(packed, mix=True)
    assert len(packed) < 12 and a.keys() == b.keys()
    far = {k: (a[k] - c[k]).abs().max() for k in a}
    for k in a: torch.testing.assert_close(b[k], a[k], atol=1e-4, rtol=1e-4)
    assert (ga - gb).norm() < 1e-4 * ga.norm()
    assert max(far.values()) > .05 and (ga - gc).norm() > .01 * ga.norm() # the rows see each other


def test_first_token_of_a_packed_text_is_not_learned():
    # 8 would be predicted from the text before it
    row = {'input_ids': [5, 6, 7, 8, 9], 'labels': [5, 6, 7, 8, 9], 'seq_lengths': [3, 2]}
    assert Collator(0)([row])['labels'][0, :5].tolist() == [IGNORE_INDEX, 6, 7, IGNORE_INDEX, 9]


def test_loss_is_the_loss(both_ways, exact):
    model, _, packed = both_ways
    data = prepare_data(exact)
    trainer = make_trainer(exact, model, data, exact.output_dir)
    batch = Collator(0)(packed[:3])
    n = (batch['labels'][:, 1:] != IGNORE_INDEX).sum()
    def plain():
        logits = model(batch['input_ids'], position_ids=batch['position_ids'], use_cache=False).logits[:, :-1]
        scores, labels = logits.flatten(0, 1), batch['labels'][:, 1:].flatten()
        return torch.nn.functional.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction='sum') / n
    trl = SFTTrainer.compute_loss
    expected = value_and_gradient(model, plain)
    for loss in (
        lambda: chunked_cross_entropy(model, batch) / n,
        lambda: chunked_cross_entropy(model, batch, chunk_size=7) / n,
        lambda: trl(trainer, model, dict(batch), num_items_in_batch=n),
        lambda: trainer.compute_loss(model, dict(batch), num_items_in_batch=n),
    ): assert_same(value_and_gradient(model, loss), expected)


def test_held_out_loss_counts_tokens(both_ways, exact):
    model, single, _ = both_ways
    model.eval()
    with torch.no_grad(): total = sum(chunked_cross_entropy(model, Collator(0)([r])).item() for r in single)
    n = sum(l != IGNORE_INDEX for r in single for l in r['labels'][1:])
    trainer = make_trainer(exact, model, prepare_data(exact), exact.output_dir)
    rows = Dataset.from_list(single)
    assert train.compute_eval_loss(trainer, rows) == pytest.approx(total / n, rel=1e-5)


# -- what is learned

CHAT = [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Hello!'},
    {'role': 'user', 'content': 'A prime?'},
    {'role': 'assistant', 'content': '7'},
]
EXAMPLES = { # type -> (row, what is learned of it)
    'alpaca': ({'instruction': 'Say it', 'input': '', 'output': 'it'}, ['it']),
    'completion': ({'text': 'Once upon'}, ['Once upon']),
    'chat_template': ({'messages': CHAT}, ['Hello!', '7']),
}

def encoded(row, kind, tokenizer):
    return encode_turns(row_to_turns(row, DatasetConfig(path='', type=kind), tokenizer), tokenizer)

def learned(ids, labels, tokenizer): # the learned pieces as text
    assert all(label in (id, IGNORE_INDEX) for id, label in zip(ids, labels))
    groups = itertools.groupby(zip(ids, labels), key=lambda pair: pair[1] != IGNORE_INDEX)
    return [tokenizer.decode([id for id, _ in pairs]) for is_learned, pairs in groups if is_learned]


@pytest.mark.parametrize('kind', EXAMPLES)
def test_answers_and_their_ends_are_learned(kind, tokenizer):
    row, answers = EXAMPLES[kind]
    expected = [a + tokenizer.eos_token for a in answers]
    tokens = encoded(row, kind, tokenizer)
    assert learned(tokens['input_ids'], tokens['labels'], tokenizer) == expected
    assert tokenizer.pad_token_id == tokenizer.eos_token_id # so a mask by token would lose the end
    long = {'input_ids': [5] * 40, 'labels': [IGNORE_INDEX] * 40}
    batch = Collator(tokenizer.pad_token_id)([tokens, long])
    n = len(tokens['input_ids'])
    labels = batch['labels'][0]
    first = labels[0].item()
    assert first == IGNORE_INDEX and (labels[n:] == IGNORE_INDEX).all()
    # nothing comes before the first token
    if kind == 'completion': expected = [tokenizer.decode(tokens['input_ids'][1:])]
    assert learned(batch['input_ids'][0].tolist(), labels.tolist(), tokenizer) == expected


@pytest.mark.parametrize('packed', [False, True])
def test_one_bos_for_each_text(model, tmp_path, packed):
    rows = save_rows(tmp_path/'r.jsonl', [{'instruction': 'a', 'output': letter * 3} for letter in 'bcde'])
    data = prepare_data(tiny_config(model, rows, tmp_path/'run', sequence_len=512, sample_packing=packed))
    assert all(any(l != IGNORE_INDEX for l in row['labels']) for row in data.train)
    texts = list(texts_of(data.train))
    for i, start, stop in texts:
        ids, labels = data.train[i]['input_ids'][start:stop], data.train[i]['labels'][start:stop]
        assert (ids[0], ids.count(1), labels[0], ids[-1], labels[-1]) == (1, 1, IGNORE_INDEX, 2, 2)
    assert len(texts) == 4 and (len(data.train) < 4) == packed


ODD = [
    'plain', '  two spaces first', '\n\nnew lines first', 'party \U0001f389\U0001f469‍\U0001f4bb',
    'a spelled <|im_end|> and </s>', 'ends in spaces  ', 'ends in lines\n\n', 'tab\t\tand é',
]

@pytest.mark.parametrize('kind', EXAMPLES)
@pytest.mark.parametrize('text', ODD)
@pytest.mark.parametrize('which', ['builtin', 'small'])
def test_what_is_asked_is_how_the_learned_row_begins(kind, text, which, tokenizer, small):
    tok, dataset = tokenizer if which == 'builtin' else small, DatasetConfig(path='', type=kind)
    if kind == 'chat_template':
        messages = CHAT[:2] + [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': text}]
        row, question = {'messages': messages}, messages[:-1]
    elif kind == 'completion': row, question = {'text': text}, {'text': text}
    else:
        row = {'instruction': text, 'input': text, 'output': text}
        question = row | {'output': ''}
    ids, tokens = prompt_ids(question, tok, dataset), encoded(row, kind, tok)
    assert tokens['input_ids'][:len(ids)] == ids
    if kind != 'completion':
        assert tokens['labels'][len(ids) - 1] == IGNORE_INDEX and tokens['labels'][len(ids)] != IGNORE_INDEX
    if kind == 'alpaca': assert all(l == IGNORE_INDEX for l in tokens['labels'][:len(ids)])
    if kind == 'alpaca':
        bare = {'instruction': text, 'output': text}
        ids = prompt_ids(text, tok, dataset) # as in a chat
        assert encoded(bare, kind, tok)['input_ids'][:len(ids)] == ids


def test_spelled_control_tokens_are_text(tokenizer):
    answer = 'It is <|im_end|>, or <|endoftext|>.'
    row = {'instruction': 'Explain <|im_start|>', 'input': '<|im_end|>', 'output': answer}
    ids = encoded(row, 'alpaca', tokenizer)['input_ids']
    assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.eos_token_id] == ids[-1:]
    assert answer in tokenizer.decode(ids)


# -- a run

@pytest.fixture(scope='module')
def run(folder, model):
    rows = alpaca_rows(30)
    for i in (4, 9): rows[i]['output'] = 'word ' * 300
    rows[6]['output'] = ''
    data = save_rows(folder/'some_bad.jsonl', rows)
    config = tiny_config(model, data, folder/'run', val_set_size=4, evals_per_epoch=2)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('HF_TOKEN', 'hf_secret')
        return finetune(config, say=None)


def test_folder_is_complete(run, folder):
    names = ('config.yml', 'config_completed.yml', 'environment.json', 'data.json', 'metrics.jsonl', 'loss.png',
        'README.md', 'samples.md', 'adapter/adapter_config.json', 'adapter/adapter_model.safetensors',
        'adapter/tokenizer.json', 'adapter/chat_template.jinja')
    for name in names: assert (run.path/name).stat().st_size > 0, name
    assert not [p for p in run.path.iterdir() if p.name.startswith('.')]
    given, completed = load_config(run.path/'config.yml'), load_config(run.path/'config_completed.yml')
    assert given == completed == run.config and given.model_fields_set < completed.model_fields_set
    environment = json.loads((run.path/'environment.json').read_text())
    assert environment['packages']['torch'] == torch.__version__ and environment['choices']
    assert (run.path/'samples.md').read_text().count('**After step') == 3


def test_no_secret_is_written(run):
    for p in run.path.rglob('*'):
        if p.is_file(): assert b'hf_secret' not in p.read_bytes(), p


def test_left_out_rows_are_counted(run, folder):
    data = json.loads((run.path/'data.json').read_text())
    reasons = [*data['rows_left_out'].items(), *data['held_out_left_out'].items()]
    def first_rows(word): return [n for reason, left_out in reasons if word in reason for n in left_out['first']]
    assert sorted(first_rows('sequence_len')) == [5, 10] # counted from 1
    assert first_rows('empty') == [7]
    assert data['rows_used'] + data['held_out'] == 27
    assert data['sources'][0]['sha256'] == {'some_bad.jsonl': sha(folder/'some_bad.jsonl')}


def test_metrics_have_each_step_once(run):
    steps = [m['step'] for m in run.metrics if 'loss' in m]
    measured = [m['step'] for m in run.metrics if 'eval_loss' in m]
    assert steps == list(range(1, steps[-1] + 1))
    assert measured[0] == 0 and measured[-1] == steps[-1] and len(measured) == len(set(measured)) >= 3
    assert losses(run)[steps[-1]] < losses(run)[1]


def test_adapter_loads_without_llmft(run, model):
    chat = load_run(run.path, quantized=False)
    row = {'instruction': 'Add 3 to a number', 'output': ''}
    [expected] = chat.generate([row], max_new_tokens=12)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=chat.model.dtype)
    plain = PeftModel.from_pretrained(base, run.path/'adapter').eval()
    tok = AutoTokenizer.from_pretrained(run.path/'adapter')
    prompt = (
        'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n'
        '### Instruction:\nAdd 3 to a number\n\n### Response:\n')
    ids = tok(prompt, return_tensors='pt')
    def answer():
        out = plain.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=tok.pad_token_id)
        return out[0, ids['input_ids'].shape[1]:]
    tuned = answer()
    assert expected and tok.decode(tuned, skip_special_tokens=True) == expected
    with plain.disable_adapter(): other = answer()
    assert other.tolist() != tuned.tolist()


@pytest.mark.parametrize('keys', [{}, pytest.param(dict(
    base_model='builtin/smollm2-135m', micro_batch_size=1, sample_packing=False,
    lora_target_modules=['q_proj', 'down_proj']), marks=pytest.mark.slow)], ids=['tiny', 'real'])
def test_seed_decides(keys, config, tmp_path):
    "Also where 4-bit layers, dropout and the order of the rows take part."
    def train_it(name, seed):
        same = dict(seed=seed, max_steps=2, lora_dropout=.1, output_dir=str(tmp_path/name))
        return sha(adapter(finetune(load_config(config, **keys, **same), say=None)))
    first = train_it('first', 1)
    torch.rand(3) # whatever happened before
    assert train_it('second', 1) == first != train_it('third', 2)


def test_layouts_and_checkpointing_train(config, tmp_path):
    def train_it(name, **keys):
        return finetune(load_config(config, max_steps=3, output_dir=str(tmp_path/name), **keys), say=None)
    usual, saving = train_it('run'), train_it('saving', gradient_checkpointing=True)
    assert losses(saving) == pytest.approx(losses(usual), abs=1e-3)
    assert len(losses(train_it('sorted', sample_packing=False, group_by_length=True))) == 3


def test_broken_numbers_stop_the_run(config, small, tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(config.base_model)
    broken.model.layers[1].mlp.down_proj.weight.data[3] = float('inf')
    broken.save_pretrained(tmp_path/'model'); small.save_pretrained(tmp_path/'model')
    config = load_config(config, base_model=str(tmp_path/'model'), load_in_4bit=False, adapter='lora')
    with pytest.raises(UserError, match='the loss is nan at step 1'): finetune(config, say=None)
    config = load_config(config, val_set_size=4)
    with pytest.raises(UserError, match='eval_loss is nan at step 0'): finetune(config, overwrite=True, say=None)


# -- stopping and going on

def stop_after(steps, monkeypatch):
    "Press Ctrl-C while step number `steps` is made."
    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == steps - 1: os.kill(os.getpid(), signal.SIGINT)
    def make(*args):
        trainer = make_trainer(*args)
        trainer.add_callback(Press())
        return trainer
    monkeypatch.setattr(train, 'make_trainer', make)


@pytest.mark.parametrize('stop', [pytest.param(2, marks=pytest.mark.slow), 5]) # in the first and the second epoch
def test_going_on_is_as_never_stopped(stop, config, tmp_path, monkeypatch):
    config = load_config(config, num_epochs=2, sample_packing=False, gradient_accumulation_steps=6, lora_dropout=.1,
        val_set_size=4, save_total_limit=1)
    straight = finetune(load_config(config, output_dir=str(tmp_path/'straight')), say=None)
    with monkeypatch.context() as m:
        stop_after(stop, m)
        stopped = finetune(config, say=None)
    assert stopped.interrupted and stopped.last('step') == stop and adapter(stopped).is_file()
    assert 'stopped before its end' in (stopped.path/'README.md').read_text()
    after = json.dumps({'step': stop + 1, 'seconds': 9, 'loss': 99.0}) # a step after the checkpoint
    with open(stopped.path/'metrics.jsonl', 'a') as f: f.write(after + '\n{"step": ') # and a line cut off
    with pytest.raises(UserError, match='`lora_r` was'): finetune(load_config(config, lora_r=4), resume=True, say=None)
    resumed = finetune(config, resume=True, say=None)
    assert not resumed.interrupted and 'stopped before' not in (resumed.path/'README.md').read_text()
    assert [m['step'] for m in resumed.metrics if 'loss' in m] == list(losses(straight))
    assert losses(resumed) == pytest.approx(losses(straight), abs=1e-3)
    def measured(run): return [(m['step'], round(m['eval_loss'], 3)) for m in run.metrics if 'eval_loss' in m]
    assert measured(resumed) == measured(straight)
    a, b = load_file(adapter(resumed)), load_file(adapter(straight))
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], atol=1e-4, rtol=1e-3)
    again = finetune(config, resume=True, say=None) # nothing is left to do
    def numbers(run): return [(m['step'], m.get('loss'), m.get('eval_loss')) for m in run.metrics]
    def with_loss(run): return [n for n in numbers(run) if n[1:] != (None, None)]
    assert with_loss(again) == with_loss(resumed)


def start_training(file):
    "`llmft train` as a process of its own."
    return subprocess.Popen([sys.executable, '-c', 'from llmft.commands.cli import main; main()', 'train', str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})

def until(process, out, steps):
    "Wait until the run in `out` has made so many steps."
    for _ in range(1200):
        file = out/'metrics.jsonl'
        if file.is_file() and file.read_text().count('"loss"') >= steps: return
        assert process.poll() is None, process.communicate()
        time.sleep(.05)
    process.kill()
    raise AssertionError('no step was made')


def test_ctrl_c_saves(config, tmp_path):
    file = save_config(load_config(config, num_epochs=500), tmp_path/'long.yml')
    process = start_training(file)
    out = tmp_path/'run'
    until(process, out, 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f'saved in {out}' in stderr and '--resume' in stderr and 'Traceback' not in stderr
    assert load_run(out)('Add 1', max_new_tokens=2) is not None


def test_killed_run_goes_on(config, tmp_path):
    config = load_config(config, num_epochs=6, save_steps=1)
    process = start_training(save_config(config, tmp_path/'run.yml'))
    until(process, tmp_path/'run', 3)
    process.kill()
    process.communicate()
    with pytest.raises(UserError, match='exists already'): finetune(config, resume=False, say=None)
    newest = max((tmp_path/'run'/'checkpoints').glob('checkpoint-*'), key=lambda p: int(p.name.split('-')[-1]))
    (newest/'trainer_state.json').unlink(missing_ok=True) # as if it was killed while saving
    said = []
    run = finetune(config, say=lambda line: said.append(str(line)))
    assert f'{newest/"trainer_state.json"} is missing' in said[0] and 'goes on after step' in said[1]
    assert list(losses(run)) == list(range(1, run.last('step') + 1)) and adapter(run).is_file()
    assert finetune(load_config(config, max_steps=1), overwrite=True, say=None).last('step') == 1
