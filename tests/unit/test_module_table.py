from pathlib import Path

from tests import module_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "modules.md"


def test_the_page_of_modules_is_what_the_tree_says():
    assert DOCUMENT.read_text(encoding="utf-8") == module_table.markdown()


def test_every_module_of_the_product_says_what_it_owns():
    assert [str(module) for module in module_table.modules() if not module_table.summary(module)] == []
