from pathlib import Path
import pytest, torch, trl
from transformers import Qwen3Config, Qwen3ForCausalLM
from llmft.config.config import RECIPES_DIR, Config, list_recipes, load_config
from llmft.export.merge import merge_adapter
from llmft.inference.generate import prompt_ids
from llmft.inference.load import load_run
from llmft.model.base import choose_optimizer, detect_hardware
from llmft.tokens.tokenize import IGNORE_INDEX, load_tokenizer
from llmft.tokens.report import prepare_data
from llmft.training.train import finetune
from tests.tiny import alpaca_rows, builtin_tokenizer, save_rows, save_tiny


@pytest.mark.parametrize('name', list_recipes())
def test_loads_and_says_how_to_use_it(name):
    assert isinstance(load_config(name), Config)
    lines = (RECIPES_DIR/f'{name}.yml').read_text(encoding='utf-8').splitlines()
    head = lines[:next(i for i, line in enumerate(lines) if not line.startswith('#'))]
    assert len(head[0]) > 20 and any(f'llmft train {name}' in line for line in head)
    assert load_config(name).output_dir == f'runs/{name}'


def test_paged_optimizers_need_a_gpu():
    from transformers.training_args import OptimizerNames
    known = {n.value for n in OptimizerNames}
    for name in known:
        for device in ('cuda', 'cpu', 'mps'):
            chosen, why = choose_optimizer(device, name)
            assert chosen in known and (chosen == name) == (why is None) and (device == 'cuda' or 'paged' not in chosen)


@pytest.mark.parametrize('name', ['paged_adamw_32bit', 'paged_adamw_8bit', 'paged_ademamix_32bit',
    'paged_ademamix_8bit', 'paged_lion_32bit', 'paged_lion_8bit'])
def test_what_stands_in_for_a_paged_optimizer_makes_steps_on_a_cpu(name, tmp_path):
    from transformers import Trainer, TrainingArguments
    weight = torch.nn.Parameter(torch.full((16, 576), 0.5))
    optim, _ = choose_optimizer('cpu', name)
    args = TrainingArguments(tmp_path, optim=optim, learning_rate=0.01, report_to='none', use_cpu=True)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = optimizer_class([weight], **settings)
    for _ in range(3):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert 0 < weight.min() and weight.max() < 0.5


def test_code_llama_7b_in_small(tmp_path):
    "The recipe itself on a model of its kind: no shared key heads, an output layer of its own."
    model = save_tiny(tmp_path/'model', tokenizer=builtin_tokenizer(), hidden_size=256, intermediate_size=688,
        num_attention_heads=8, num_key_value_heads=8)
    data = save_rows(tmp_path/'rows.jsonl', alpaca_rows(100))
    config = load_config('code-llama-7b', base_model=str(model), datasets=[{'path': data, 'type': 'alpaca'}],
        output_dir=str(tmp_path/'run'), sequence_len=256, gradient_accumulation_steps=2, max_steps=3,
        max_new_tokens=4)
    said = []
    run = finetune(config, say=lambda x: said.append(str(x)))
    assert run.last('step') == 3 and run.first('eval_loss') > run.last('eval_loss')
    if not torch.cuda.is_available():
        assert detect_hardware(config).optimizer == 'adamw_torch'
        assert 'optimizer: adamw_torch, because `paged_adamw_32bit` needs an NVIDIA GPU' in '\n'.join(said)
    merged = load_run(merge_adapter(run.path, tmp_path/'merged'))
    assert merged.model.config.num_hidden_layers == 2 and not hasattr(merged.model, 'peft_config')
    adapted = load_run(run.path, quantized=False)
    ids = torch.tensor([merged.prompt_ids('Add 1 to a number')])
    with torch.inference_mode(): a, b = merged.model(ids).logits.float(), adapted.model(ids).logits.float()
    assert (a - b).norm() < .05 * b.norm()
    assert isinstance(merged('Add 1 to a number', max_new_tokens=5), str)


@pytest.fixture(scope='module')
def qwen(tmp_path_factory):
    "A folder with a small Qwen3 that has Qwen3's own chat template."
    tokenizer = builtin_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent/'chat_templates'/'qwen3.jinja').read_text(encoding='utf-8')
    return save_tiny(tmp_path_factory.mktemp('qwen'), Qwen3ForCausalLM, Qwen3Config, tokenizer, head_dim=16,
        tie_word_embeddings=True)


CHATS = [[('user', 'Hi'), ('assistant', 'Hello!'), ('user', 'A prime?'), ('assistant', '7')],
         [('system', 'Be short.'), ('user', 'One?'), ('assistant', '  1\n'),
          ('user', 'Two \U0001f389?'), ('assistant', '2')]]

def test_qwen3_learns_the_answers_only(qwen, tmp_path):
    messages = [[{'role': r, 'content': c} for r, c in chat] for chat in CHATS]
    path = save_rows(tmp_path/'chats.jsonl', [{'messages': m} for m in messages] * 20)
    config = load_config('qwen3-1.7b-chat', base_model=str(qwen), datasets=[{'path': path, 'type': 'chat_template'}],
        output_dir=str(tmp_path/'run'), sequence_len=256, gradient_accumulation_steps=1, max_steps=2, dedup='off',
        max_new_tokens=4)
    tokenizer = load_tokenizer(config)
    data = prepare_data(load_config(config, sample_packing=False, val_set_size=0))
    assert data.row_counts.used == 40
    for m, tokens in zip(messages, data.train):
        learned = tokenizer.decode([l for l in tokens['labels'] if l != IGNORE_INDEX])
        for part in m: assert (part['content'].strip() in learned) == (part['role'] == 'assistant')
        assert learned.count('<|im_end|>') == 2 and 'user' not in learned
        for i, part in enumerate(m):
            if part['role'] != 'assistant': continue
            ids = prompt_ids(m[:i], tokenizer, config.datasets[0])
            assert tokens['input_ids'][:len(ids)] == ids
            assert tokens['labels'][len(ids) - 1] == IGNORE_INDEX and tokens['labels'][len(ids)] != IGNORE_INDEX
    run = finetune(config, say=None)
    assert run.last('step') == 2
    chat = load_run(run.path)
    assert chat.tokenizer.chat_template == tokenizer.chat_template and isinstance(chat('Hi', max_new_tokens=3), str)
