"""Mends of what files of strangers may take and do."""

from __future__ import annotations

from mends.mend import Mend

STRANGERS = {
    "repeated-texts": Mend(
        "raymeta/data/readers/unfolding.py",
        "        self._count(len(column) * _width(column.type) + text_bytes)\n",
        "",
        "tests/data/readers/test_unfolding.py",
        "gigabytes and a.tsf",
        is_quick=True,
    ),
    "declared-buffers": Mend(
        "raymeta/data/readers/unfolding.py",
        "            size += max(0, declared)  # -1: this buffer is not compressed\n",
        "",
        "tests/data/readers/test_unfolding.py",
        "gigabytes and zeros",
        is_quick=True,
    ),
    "parquet-texts": Mend(
        "raymeta/data/readers/unfolding.py",
        " if _is_text(field.type)],\n",
        " if False],\n",
        "tests/data/readers/test_unfolding.py",
        "gigabytes and parquet",
        is_quick=True,
    ),
    "damaged-lines": Mend(
        "raymeta/storage/journal.py",
        "        if self._count > _MOST_DAMAGED:\n",
        "        if False:\n",
        "tests/storage/test_journal.py",
        "damaged_lines",
        is_quick=True,
        says="DID NOT RAISE",
    ),
    "declared-sizes": Mend(
        "raymeta/training/recipe.py",
        '    nowhere = torch.device("meta")\n',
        '    nowhere = torch.device("cpu")\n',
        "tests/inference/test_files.py",
        "sizes_that_a_model_file_names",
        is_quick=True,
    ),
    "refit-seeds": Mend(
        "raymeta/evaluation/networks.py",
        "        if len(seeds) > MOST_SEEDS:\n",
        "        if False:\n",
        "tests/inference/test_files.py",
        "more_seeds",
        is_quick=True,
    ),
    "forged-trials": Mend(
        "raymeta/search/records.py",
        "    if not is_number(value):\n",
        "    if False:\n",
        "tests/search/test_records.py",
        "record_of_another_form",
        is_quick=True,
    ),
    "terminal": Mend(
        "raymeta/console/terminal.py",
        '    return _COMMANDS.sub("", text)\n',
        "    return text\n",
        "tests/test_strangers.py",
        "commands_the_terminal",
        is_quick=True,
    ),
    "fetched-size": Mend(
        "raymeta/deploy/jobs/fetch.py",
        "                if size > FOLDER_BYTES:\n                    raise too_large",
        "                if False:\n                    raise too_large",
        "tests/deploy/jobs/test_fetch.py",
        "through_ssh",
        is_quick=True,
    ),
    "fetched-log": Mend(
        "raymeta/deploy/jobs/fetch.py",
        "            if len(head) == _HEAD or _SAID.search(head):\n",
        "            if _SAID.search(head) or len(head) > 1 << 40:\n",
        "tests/deploy/jobs/test_fetch.py",
        "head_of_a_log",
        is_quick=True,
    ),
    "schema-storage": Mend(
        "raymeta/cli/data.py",
        "    file = path_at(output)\n",
        '    file = __import__("pathlib").Path(output)\n',
        "tests/experiment/test_json_schema.py",
        "to_a_storage",
        is_quick=True,
    ),
}
