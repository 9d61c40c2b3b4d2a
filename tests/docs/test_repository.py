"""The repository's URL: one place holds it, every copy agrees, and one command sets them all."""

import re
import shutil

import pytest
from set_repository import ROOT, repository_url, set_repository, slug, tracked_files

CARRIERS = ["CITATION.cff", "README.md", "colabs/quickstart.ipynb", "configs/clusters/gcloud.toml", "pyproject.toml",
            "tests/goldens/launch/gcloud.startup.sh"]
NEW = "https://github.com/someone-else/vision.lite"


def copies(paths) -> dict[str, set[str]]:
    """OWNER/NAME in each file's links to this repository, also under an earlier name."""
    here = slug(repository_url())
    names = "|".join(re.escape(name) for name in {here, here.partition("/")[2], "big_vision_lite"})
    pattern = re.compile(rf"github(?:\.com)?/((?:[\w.-]+/)?(?:{names}))(?![\w-])")
    found = {str(path.relative_to(ROOT)): set(pattern.findall(path.read_text())) for path in paths}
    return {name: slugs for name, slugs in found.items() if slugs}


def test_every_copy_is_the_same():
    found = copies(path for path in tracked_files() if path.name != "test_repository.py")
    assert set(CARRIERS) <= found.keys()
    assert {name: slugs for name, slugs in found.items() if slugs != {slug(repository_url())}} == {}


def test_one_command_sets_them_all(tmp_path):
    before = {name: (ROOT / name).read_bytes() for name in CARRIERS}
    for name in CARRIERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    paths = [tmp_path / name for name in CARRIERS]
    old = repository_url(tmp_path)
    assert set_repository(NEW, paths, tmp_path) == paths
    assert repository_url(tmp_path) == NEW and set_repository(NEW, paths, tmp_path) == []
    assert not [path for path in paths if slug(old) in path.read_text() or slug(NEW) not in path.read_text()]
    set_repository(f"{old}.git", paths, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in CARRIERS} == before
    with pytest.raises(SystemExit, match="is no repository on GitHub"):
        set_repository("https://example.org/x", paths, tmp_path)
