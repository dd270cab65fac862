"""Settings that every data set shares; a data set's own config adds fields to `DataConfig`."""

from dataclasses import dataclass, field
from enum import Enum

from harness.errors import reject

# `raise` can be a member by this form only; the command line shows members by name.
Truncation = Enum(
    "Truncation", {"delete": "delete", "left": "left", "right": "right", "split": "split", "raise": "raise"}
)
"""What happens to a row of more than `max_length` tokens."""

OnError = Enum("OnError", {"raise": "raise", "skip": "skip"})
"""What happens to a row that can not be used."""


class PaddingSide(Enum):
    """Where a micro-batch is padded."""

    right = "right"
    left = "left"


class LossScale(Enum):
    """Which tokens carry loss, and with what weight."""

    default = "default"
    last_round = "last_round"
    all = "all"
    ignore_empty_think = "ignore_empty_think"
    react = "react"
    hermes = "hermes"
    qwen = "qwen"
    agentflan = "agentflan"
    alpha_umi = "alpha_umi"


class AgentTemplate(Enum):
    """How tools, calls and their results become text."""

    hermes = "hermes"
    qwen_en = "qwen_en"
    qwen_zh = "qwen_zh"
    qwen_en_parallel = "qwen_en_parallel"
    qwen_zh_parallel = "qwen_zh_parallel"
    react_en = "react_en"
    react_zh = "react_zh"
    toolbench = "toolbench"
    glm4 = "glm4"
    glm4_5 = "glm4_5"


class BboxScale(Enum):
    """Which numbers the model sees for a bounding box."""

    norm1000 = "norm1000"
    none = "none"


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """How many tokens an image becomes; one is `(patch_size * merge_size)^2` pixels, 32 x 32 for Qwen3-VL."""

    min_tokens: int | None = None
    """Smaller images are enlarged to at least this many tokens; null keeps the checkpoint's bound."""
    max_tokens: int | None = None
    """Larger images are shrunk to at most this many tokens; null keeps the checkpoint's bound."""
    max_pixels_decoded: int = 100_000_000
    """Images of more pixels are refused by their header, undecoded: a file of 7 KB can unpack to gigabytes."""

    def __post_init__(self) -> None:
        for key in ("min_tokens", "max_tokens", "max_pixels_decoded"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise reject(f"data.image.{key}", value, "give at least 1")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise reject("data.image.min_tokens", self.min_tokens, f"is over data.image.max_tokens={self.max_tokens}")


@dataclass(kw_only=True, slots=True)
class VideoConfig:
    """Which frames of a video are seen, and how many tokens it becomes."""

    fps: float = 2.0
    """Frames a second of the video that are sampled."""
    min_frames: int = 4
    """Short videos give at least this many frames, where they have them."""
    max_frames: int = 768
    """Long videos give at most this many frames, spread over their whole length."""
    min_tokens: int | None = None
    """A video becomes at least this many tokens, all frames together; null keeps the checkpoint's bound."""
    max_tokens: int | None = None
    """A video becomes at most this many tokens, all frames together; null keeps the checkpoint's bound."""
    time_limit_s: float = 60.0
    """A video whose frames are not decoded after this many seconds counts as broken."""

    def __post_init__(self) -> None:
        for key in ("fps", "time_limit_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise reject(f"data.video.{key}", getattr(self, key), "give a number above 0")
        for key in ("min_frames", "max_frames", "min_tokens", "max_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise reject(f"data.video.{key}", value, "give at least 1")
        for low, high in (("min_frames", "max_frames"), ("min_tokens", "max_tokens")):
            below, above = getattr(self, low), getattr(self, high)
            if below is not None and above is not None and below > above:
                raise reject(f"data.video.{low}", below, f"is over data.video.{high}={above}")


class CacheMode(Enum):
    """Whether the frozen ViT's features are kept."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass(kw_only=True, slots=True)
class VitCacheConfig:
    """Features of a frozen ViT, kept for the next epoch, trial or process: neither decoded nor computed again."""

    mode: CacheMode = CacheMode.auto
    """auto keeps them where the ViT is frozen, rows come again in this run and all features fit max_gib, and logs why
    or why not; always keeps them or refuses, which is for sweeps of one epoch; never runs the ViT each step."""
    folder: str | None = None
    """Folder of the features, for all runs together; null takes vit_features in data.cache_dir. One below /dev/shm is
    memory alone."""
    max_gib: float = 50.0
    """GiB (2^30 bytes) that the folder may hold; what was used longest ago makes room, but nothing used in this run."""

    def __post_init__(self) -> None:
        if not 0 < self.max_gib < float("inf"):
            raise reject("data.vit_cache.max_gib", self.max_gib, "give a number above 0")
        if self.mode is CacheMode.never and self.folder is not None:
            raise reject("data.vit_cache.folder", self.folder, "has no effect with data.vit_cache.mode=never")


@dataclass(kw_only=True, slots=True)
class GenerationConfig:
    """Validation by greedy generation: the share of answers that equal the reference exactly."""

    enabled: bool = False
    """Generate answers to the validation rows; each row's last assistant turn is the reference."""
    max_new_tokens: int = 32
    """Longest answer, in tokens, its end token included."""
    max_samples: int | None = None
    """Generate for the first this many validation rows; null takes them all."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise reject("data.generation.max_new_tokens", self.max_new_tokens, "give at least 1")
        if self.max_samples is not None and self.max_samples < 1:
            raise reject("data.generation.max_samples", self.max_samples, "give at least 1, or null for all rows")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What does not depend on where the rows come from. Extend it by fields only."""

    system: str | None = None
    """System message of rows that have none of their own: the text, or the path of a .txt file that holds it."""
    agent_template: AgentTemplate = AgentTemplate.hermes
    """How a row's tools, tool_call and tool_response turns become text; hermes is Qwen's own."""
    loss_scale: LossScale = LossScale.default
    """Which tokens carry loss: default all answers, last_round the last, all every token; the others weight parts."""
    response_prefix: str | None = None
    """Text with which every answer begins, given to the model and not learnt; null for none."""
    bbox: BboxScale = BboxScale.norm1000
    """Bounding boxes of grounding rows in thousandths of the image, as Qwen3-VL writes them, or as they stand."""
    max_length: int | None = None
    """Longest row in tokens, image tokens included; null means as many as the tokenizer says the model takes."""
    truncation: Truncation = Truncation.delete
    """Rows over max_length: delete drops and counts them; left, right cut text, never an image; split makes several
    rows; raise ends the run."""
    packing: bool = False
    """Fill rows of packing_length tokens with several samples, each seeing itself alone. A batch then counts packs."""
    packing_length: int | None = None
    """Tokens of a pack; null takes max_length. Longer samples are over max_length."""
    packing_fill: bool = True
    """Fill each pack up to packing_length, so that shapes never change, as compiled kernels like it."""
    padding_free: bool = False
    """Join the samples of a micro-batch into one row instead of padding them to the longest."""
    max_tokens_per_batch: int | None = None
    """Micro-batches of as many samples as this many tokens hold, padding included; trainer.batch_size stays 1."""
    group_by_length: bool = False
    """Put samples of like length into a micro-batch, to save padding; steps come in the order of a sample of theirs."""
    padding_side: PaddingSide = PaddingSide.right
    """Where a micro-batch of samples of unlike length is padded."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Tokens per image and the decoding limit."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """Frames and tokens per video."""
    on_error: OnError = OnError["raise"]
    """A row that can not be used ends the run (raise), or is counted, listed and left out (skip)."""
    workers: int = 2
    """Processes per device that decode images ahead of the training step; 0 decodes between steps."""
    prefetch: int = 2
    """Batches that each of the workers makes ahead; more evens out images that are slow to decode, and takes memory."""
    index_workers: int | None = None
    """Processes that tokenise rows and read image headers before training; null takes one per usable core."""
    cache_dir: str | None = "outputs/cache"
    """Folder that keeps tokenised rows, downloads and compiled kernels for the next run; null keeps nothing."""
    channels: list[str] = field(default_factory=list)
    """Values of the rows' `channel` whose loss is logged apart, as train/loss/<channel> and val/loss/<channel>."""
    vit_cache: VitCacheConfig = field(default_factory=VitCacheConfig)
    """Features of a frozen ViT, kept instead of computed each step."""
    shuffle: bool = True
    """New order of the training rows each epoch, drawn from the run's seed. false keeps the order of the files: packs
    and batches of a token budget take the rows that come next, and are less full."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Exact-match validation by generation."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise reject("data.max_length", self.max_length, "give at least 1, or null for the model's own limit")
        if self.packing and self.packing_length is None and self.max_length is None:
            raise reject("data.packing_length", "null", "say how many tokens a pack holds, for example 8192")
        if self.packing_length is not None and not self.packing:
            raise reject("data.packing_length", self.packing_length, "has no effect without data.packing=true")
        if not self.packing_fill and not self.packing:
            raise reject("data.packing_fill", "false", "has no effect without data.packing=true")
        for key in ("packing_length", "max_tokens_per_batch", "index_workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise reject(f"data.{key}", value, "give at least 1")
        if self.workers < 0:
            raise reject("data.workers", self.workers, "give 0 or more")
        if self.cache_dir == "":
            raise reject("data.cache_dir", "''", "give a folder, or null to keep nothing")
        if self.prefetch < 1:
            raise reject("data.prefetch", self.prefetch, "give at least 1")
        if self.prefetch != 2 and not self.workers:
            raise reject("data.prefetch", self.prefetch, "has no effect with data.workers=0")
        if "" in self.channels or len(set(self.channels)) < len(self.channels):
            raise reject("data.channels", self.channels, "name each channel once")
        self._check_batching()

    def _check_batching(self) -> None:
        """Refuses settings of which one would be without effect."""
        reasons = {
            "packing": ("padding_free", "max_tokens_per_batch", "group_by_length"),
            "max_tokens_per_batch": ("group_by_length",),
        }
        for first, others in reasons.items():
            for other in others:
                if getattr(self, first) and getattr(self, other):
                    raise reject(f"data.{other}", getattr(self, other), f"has no effect beside data.{first}; unset one")
        if self.padding_side is PaddingSide.left and (self.packing or self.padding_free):
            raise reject("data.padding_side", "left", "has no effect without padding; unset packing and padding_free")

    def look(self) -> None:
        """Looks at what is there to be read, as far as that takes no time.

        Raises:
            UserError: Something can not be used.
        """

    def longest_sample(self) -> int | None:
        """Returns the longest row allowed in tokens: that of a pack or batch, where it is shorter."""
        limits = [self.max_length, self.packing_length, self.max_tokens_per_batch]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def has_one_length(self) -> bool:
        """Whether all training batches have as many tokens, padding included."""
        return self.packing and self.packing_fill

    def pack_length(self) -> int | None:
        """Returns the tokens of a pack, or None without packing."""
        return (self.packing_length or self.max_length) if self.packing else None
