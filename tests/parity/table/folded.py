"""Configs of the methods that become LoRA when they are packed."""

from collections.abc import Collection

from peft import (
    AdaLoraConfig,
    BeftConfig,
    BOFTConfig,
    C3AConfig,
    DeftConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    LoHaConfig,
    LoKrConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PveraConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    SupertuningConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
)


def configs(names: Collection[str], task: str) -> dict[str, PeftConfig]:
    """Return a config of each for the layers `names`, or for `all-linear`."""
    common = {"task_type": task, "target_modules": names}
    return {
        "adalora": AdaLoraConfig(**common, init_r=6, target_r=3, total_step=9, lora_alpha=12),
        "loha": LoHaConfig(**common, r=3, alpha=5),
        "lokr": LoKrConfig(**common, r=2, alpha=4),
        "vera": VeraConfig(**common, r=6),
        "pvera": PveraConfig(**common, r=6),
        "miss": MissConfig(**common, r=5),
        "miss, mini": MissConfig(**common, r=6, init_weights="mini", mini_r=4),
        "miss, bat": MissConfig(**common, r=4, init_weights="bat"),
        "vblora": VBLoRAConfig(**common, r=3, num_vectors=9, vector_length=4, topk=3),
        "gralora": GraloraConfig(**common, r=4, gralora_k=2, alpha=3, hybrid_r=3),
        "delora": DeloraConfig(**common, r=5, delora_lambda=3),
        "unilora": UniLoraConfig(**common, r=3, theta_d_length=50, save_indices=True),
        "tinylora": TinyLoraConfig(**common, r=3, u=7, weight_tying=1.0),
        "hra": HRAConfig(**common, r=4),
        "deft": DeftConfig(**common, r=3),
        "beft": BeftConfig(**common),
        "oft": OFTConfig(**common, oft_block_size=4, r=0),
        "boft": BOFTConfig(**common, boft_block_size=4),
        "road": RoadConfig(**common, variant="road_2", group_size=4),
        "shira": ShiraConfig(**common, r=1),
        "supertuning": SupertuningConfig(**common, sparsity=0.8),
        "randlora": RandLoraConfig(**common, r=5, randlora_alpha=4),
        "c3a": C3AConfig(**common, block_size=4),
        "fourierft": FourierFTConfig(**common, n_frequency=40, scaling=20.0),
        "hira": HiraConfig(**common, r=3),
    }
