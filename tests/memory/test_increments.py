"What the loss of all scores, DoRA and adapters in 32 bits take: as planned, and as it is in the same step really run."
import functools
import pytest, torch
from tests.memory.test_memory import folders, full_row, optimizer_of, run_config, small_run, trainer_of # noqa: F401
from llmft.memory.dryrun import StorageTracker, checkpoint_contexts, memory_peaks, model_tensors, training_step
from llmft.memory.plan import dry_run, plan_memory
from llmft.model.adapters import add_adapter
from llmft.model.base import load_base, load_hf_config
from llmft.model.gpus import find_gpu
from llmft.model.loss import chunked_cross_entropy, full_cross_entropy
from llmft.training.train import Collator

BF16 = functools.partial(torch.autocast, 'cpu', torch.bfloat16)


def compare(config, **options):
    real = memory_peaks(dry_run_on_cpu(config, **options))
    plan = memory_peaks(dry_run(config, load_hf_config(config), find_gpu('CPU'))[0])
    for step in ('start', 'forward', 'backward', 'optimizer', 'end'): assert plan[step][2] == real[step][2], step


def dry_run_on_cpu(config, **options):
    tracker, model = StorageTracker(), load_base(config)
    for t in model_tensors(model): tracker.track(t, 'weights')
    with tracker: model = add_adapter(model, config)
    params = [p for p in model.parameters() if p.requires_grad]
    for p in params: tracker.track(p, 'adapter')
    batch = Collator(0)([full_row(config)]*config.micro_batch_size)
    batch['labels'] = batch['input_ids'].clone()
    for t in batch.values(): tracker.track(t, 'activations')
    loss = chunked_cross_entropy if config.chunked_cross_entropy else full_cross_entropy
    training_step(model.train(), batch, loss, optimizer_of(config, params), tracker, **options)
    return tracker


@pytest.mark.parametrize('options', [
    dict(peft_use_dora=True), dict(peft_use_dora=True, lora_dropout=.1),
    dict(lora_target_modules=['gate_proj', 'up_proj', 'down_proj']), dict(lora_target_modules=['q_proj'], lora_dropout=.1)],
    ids=str)
@pytest.mark.parametrize('chunked', [True, False])
def test_kinds_of_adapters_in_two_formats(folders, options, chunked): # noqa: F811
    config = run_config(folders('llama'), gradient_checkpointing=False, sequence_len=256, bf16=True,
                        chunked_cross_entropy=chunked, **options)
    compare(config, amp=BF16)


@pytest.mark.parametrize('kind,options', [
    ('llama', {}), ('llama', dict(adapter='full')), ('qwen3', dict(micro_batch_size=3)), ('mixtral', {}),
    ('gemma3_text', {})], ids=str)
def test_scores_of_all_tokens(folders, kind, options): # noqa: F811
    compare(run_config(folders(kind), gradient_checkpointing=False, chunked_cross_entropy=False, **options))
