"""The code in docs/blocks.md runs."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_example_of_blocks_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "blocks.md").read_text(), flags=re.DOTALL)
    exec(compile(example, "docs/blocks.md", "exec"), {})
    assert "['rnn.weight_ih_l0[input]', 'rnn.weight_ih_l0[forget]'] (10, 10)" in capsys.readouterr().out
