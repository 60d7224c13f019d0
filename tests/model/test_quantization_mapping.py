"What a file says of stored bits reaches transformers as its own object."
from llmft.model.base import load_base
from tests.tiny import load_config, save_tiny, small_tokenizer


def test_mapping_in_model_kwargs(tmp_path):
    save_tiny(tmp_path/'model', tokenizer=small_tokenizer())
    bits = {'quantization_config': {'quant_method': 'bitsandbytes', 'load_in_4bit': True}}
    config = load_config({'base_model': str(tmp_path/'model'), 'adapter': 'lora', 'model_kwargs': bits,
        'datasets': [{'path': 'rows.jsonl'}]})
    assert 'Linear4bit' in {type(module).__name__ for module in load_base(config).modules()}
    assert config.model_kwargs == bits # nothing was changed in it
