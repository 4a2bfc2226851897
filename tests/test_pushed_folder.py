"""The folder of a student is checked before anything of it is sent."""

import shutil

import pytest
import torch
from hub_server import TOKEN
from published import REPO, push
from safetensors.torch import load_file, save_file

from frskd_timm.errors import UserError
from frskd_train.publish.student import check_folder, push_student


def damage_weights(change):
    def damage(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def pickle_weights(folder):
    """Store them as timm does by default."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_weights(lambda s: s.update({"self_teacher.head.weight": torch.zeros(2)})), "self_teacher.head.weight"),
        (damage_weights(lambda s: s.pop("fc.bias")), "no weights for keys.*fc.bias"),
        (damage_weights(lambda s: s["fc.bias"].fill_(float("nan"))), "not finite in fc.bias"),
        (damage_weights(lambda s: s.update({"fc.bias": torch.zeros(11)})), "shapes"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), "is damaged"),
        (lambda f: (f / "config.json").write_text("{"), "could not be read as JSON"),
        (lambda f: (f / "config.json").write_text('{"architecture": "no_such", "pretrained_cfg": {}}'), "no_such"),
        (lambda f: (f / "README.md").unlink(), "only training writes a card"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "not a valid card"),
        (lambda f: (f / "README.md").write_text("# no metadata"), "library_name"),
        (lambda f: (f / "curves.png").unlink(), "shows curves.png"),
        (pickle_weights, "has its weights as pytorch_model.bin"),
        (lambda f: (f / "recipe.yaml").write_bytes(b"model: \xff\xfe\n"), "recipe.yaml is not UTF-8"),
        (lambda f: (f / "recipe.yaml").write_text(f"token: {TOKEN.replace('_', '_Z')}"), "Hugging Face token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_that_is_not_in_order_stays_here(hub, student, tmp_path, damage, sentence):
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    damage(folder)
    with pytest.raises(UserError, match=sentence):
        push(hub, folder)
    assert hub.log == []


def test_every_picture_of_the_card_is_published(student, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    names = {"a.png", "my pic.png", "b.png", "c.jpg", "p(1).png", "d e.png", "LICENSE"}
    for name in names | {"notes.png"}:
        shutil.copy(folder / "curves.png", folder / name)
    shown = """![](a.png "title") ![](my%20pic.png) ![x](<b.png>) <img width="9" src='c.jpg'>
![a [b]](<d e.png>) ![](p(1).png) ![](./a.png) <img src="d e.png"> `![](code.png)`
```
![](code.png)
```
![](data:image/png;base64,AAAA) ![](https://example.com/d.png) <img src="//example.com/e.png">"""
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + shown, encoding="utf-8-sig")  # the mark of Windows editors
    assert names < set(check_folder(folder))
    assert set(check_folder(folder)) - names == set(check_folder(student))
    said: list[str] = []
    push_student(folder, REPO, dry_run=True, say=said.append)
    assert "Not uploaded, because they are neither part of a student nor shown on its card: notes.png." in said
    assert not any("states no licence" in line for line in said)
