"""Named methods: which paper, which functions, put together how. Every recipe's objective is one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A published method as a composition of ``parts`` (function names of the maths packages)."""

    title: str
    paper: str
    how: str
    parts: tuple[str, ...]
    kinds: tuple[str, ...] = ()  # values of `kind:` in a recipe that mean this method
    overrides: str = ""  # what turns recipes/grpo.yaml into it, where no recipe of its own shows it


METHODS: dict[str, Method] = {
    "reinforce": Method(
        "REINFORCE",
        "Williams (1992)",
        "reinforce with the score itself, or any baseline, as advantage",
        ("reinforce", "group_advantages", "to_tokens", "reduce"),
        ("reinforce",),
    ),
    "ppo": Method(
        "Proximal policy optimisation, clipped",
        "1707.06347",
        "clipped_surrogate of token ratios; dual_clip as an option (1912.09729)",
        ("clipped_surrogate", "reduce"),
        overrides="advantage={kind: reinforce} objective.dual_clip=3.0",
    ),
    "grpo": Method(
        "Group-relative policy optimisation",
        "2402.03300",
        "group mean and std, clipped_surrogate, mean of sequence means; reference KL (kl_coef) by k2, exact "
        "in its gradient",
        ("group_advantages", "clipped_surrogate", "reduce", "reverse_kl_k2"),
        ("grpo", "group"),
    ),
    "dr_grpo": Method(
        "Dr.GRPO",
        "2503.20783",
        "group mean without std, constant denominator",
        ("group_advantages", "clipped_surrogate", "reduce", "local_denominator"),
        overrides="objective.reduction=constant advantage.scale=none",
    ),
    "dapo": Method(
        "DAPO",
        "2503.14476",
        "clip_high above clip_low, token mean, overlong penalty added after normalising; its filter of "
        "groups by outcome "
        "(groups_with_signal) is for code of your own, the trainer keeps them at advantage 0",
        ("clipped_surrogate", "reduce", "groups_with_signal", "soft_overlong_penalty", "add_shaping"),
        overrides="objective.clip_high=0.28 objective.reduction=token",
    ),
    "rloo": Method(
        "RLOO",
        "2402.14740",
        "reinforce with the leave-one-out baseline: exact for any group size",
        ("group_advantages", "reinforce", "reduce"),
        overrides="advantage={kind: group, baseline: leave_one_out, scale: none}",
    ),
    "gspo": Method(
        "GSPO",
        "2507.18071",
        "gspo: one ratio a sequence, its geometric mean",
        ("gspo", "reduce"),
        overrides="objective={kind: grpo, ratio: sequence, reduction: sequence, clip_low: 3.0e-4, clip_high: 4.0e-4}",
    ),
    "cispo": Method("CISPO (MiniMax-M1)", "2506.13585", "cispo: clipped, detached weights", ("cispo", "reduce")),
    "importance": Method(
        "Correction of the rollout-to-policy gap",
        "2510.18855",
        "a weight from the trainer's to the rollout engine's log-probabilities, truncated (TIS) or masked (IcePop)",
        ("truncated_importance_weight", "masked_importance_weight"),
        ("truncate", "mask"),
        overrides="objective.correction={kind: truncate, high: 2.0}",
    ),
    "async": Method(
        "Asynchronous RL (AReaL, decoupled PPO)",
        "2505.24298",
        "clip around the policy at the start of the update, correct to the weights that sampled, refuse what "
        "is too old",
        ("decoupled_surrogate", "fresh_enough", "truncated_importance_weight"),
        overrides="cluster.schedule=async cluster.max_staleness=1 objective.correction={kind: truncate, high: 2.0}",
    ),
    "on_policy_distillation": Method(
        "On-policy distillation (KD-RKL)",
        "2506.02208",
        "k2 (or k3: forward KL) on the policy's own tokens, or the log-ratio as advantage; reward_to_go, in "
        "code of your "
        "own, for sequence-level credit",
        ("reverse_kl_k2", "forward_kl_k3", "additive_advantage", "reward_to_go", "k1_value"),
        ("distill", "opd"),
    ),
    "kdrl": Method(
        "KDRL",
        "2506.02208",
        "GRPO plus k2 at the same tokens, or the log-ratio added to the advantage; masks by correctness (k2 is then "
        "a mean over kept tokens, the added advantage stays in the policy loss's); schedules; on older "
        "rollouts k2 times "
        "the truncated weight",
        (
            "kdrl_joint",
            "additive_advantage",
            "distill_mask",
            "clipped_surrogate",
            "truncated_importance_weight",
            "anneal",
            "hard_switch",
            "constant",
        ),
        ("kdrl",),
    ),
    "redi": Method(
        "REDI",
        "2505.24850",
        "SFT, then redi with rejected_weight 0.8, reduced by sequence over the number of pairs; 1.0 is symmetric",
        ("redi", "cross_entropy", "reduce", "sequence_logprobs"),
        ("redi", "symmetric"),
    ),
    "dpo": Method("DPO", "2305.18290", "dpo on summed log-probabilities", ("dpo", "sequence_logprobs"), ("dpo",)),
    "simpo": Method(
        "SimPO", "2405.14734", "simpo on mean log-probabilities", ("simpo", "sequence_logprobs"), ("simpo",)
    ),
    "sft": Method(
        "Supervised fine-tuning",
        "1606.07947",
        "cross_entropy on given targets, weighted by row if asked for; on teacher samples: sequence-level distillation",
        ("cross_entropy", "reduce"),
        ("sft",),
    ),
    "opsd": Method(
        "OPSD, Self-Distilled Reasoner",
        "2601.18734",
        "forward KL of the privileged self-teacher (frozen, EMA or live) at the student's tokens, every entry capped",
        (
            "divergence",
            "chunked_divergence",
            "jensen_shannon",
            "forward_kl",
            "additive_advantage",
        ),
        ("opsd",),
    ),
    "opsd_reward": Method(
        "OPSD with reward",
        "2602.04942",
        "policy gradient on student rollouts, reverse KL to the live privileged teacher in the reward or as a loss",
        ("penalised_scores", "k1_value", "reverse_kl", "reverse_kl_k2", "clipped_surrogate"),
        ("opsd_reward",),
    ),
    "pi_distill": Method(
        "pi-Distill",
        "2602.04942",
        "privileged rollouts train both views; KL in the reward, centred by group, teacher_share by a linear schedule",
        ("pi_distill", "penalised_scores", "group_advantages", "linear"),
        ("pi_distill",),
    ),
    "rltf_sd": Method(
        "RLTF-SD",
        "2602.02482",
        "two-turn policy gradient plus the revised answer credited under the bare prompt, first-turn mean as baseline",
        ("first_turn_advantages", "turn_advantages", "rltf_self_distillation", "linear"),
        ("rltf_sd",),
    ),
    "rltf_fm": Method(
        "RLTF-FM",
        "2602.02482",
        "two-turn policy gradient plus cross-entropy on the critique's tokens",
        ("turn_advantages", "cross_entropy"),
        ("rltf_fm",),
    ),
    "gkd": Method(
        "GKD",
        "2306.13649",
        "generalised Jensen-Shannon on a fixed share of on-policy rows",
        ("jensen_shannon", "mixed_source_weights", "forward_kl", "reverse_kl", "chunked_divergence"),
        ("gkd",),
    ),
    "minillm": Method(
        "MiniLLM", "2306.08543", "sequence-level reverse KL by reward-to-go", ("reverse_kl", "reward_to_go")
    ),
    "distillm": Method("DistiLLM", "2402.03898", "skewed divergences", ("skewed_forward_kl", "skewed_reverse_kl")),
    "f_distill": Method("f-DISTILL", "2307.15190", "total variation", ("total_variation",)),
    "ssld": Method("SSLD", "2103.05959", "symmetric Jensen-Shannon, no labels", ("jensen_shannon",)),
    "topk": Method(
        "Top-k distillation with an exact tail",
        "ours",
        "divergence of bucketed distributions, on the teacher's, the policy's or both supports",
        ("top_support", "union_support", "bucketed", "complete", "chunked_bucketed", "chunked_top_support"),
    ),
    "logit_standardization": Method(
        "Logit standardization",
        "2403.01427",
        "z-scores on a support, or the policy moved to the teacher's moments",
        ("standardise", "standardise_to_teacher"),
    ),
    "pld": Method("Plackett-Luce distillation", "2506.12542", "listwise loss on a support", ("plackett_luce",)),
    "dual_head": Method(
        "Dual-head KD",
        "2411.08937",
        "log-cosh logit matching on a second head, gradients aligned",
        ("log_cosh_matching", "aligned_gradient"),
    ),
    "tgeo": Method(
        "TGeo-KD",
        "2312.15112",
        "each sample's own balance of teacher and target, from their geometry",
        ("trilateral_features", "trilateral_weights", "per_sample_mixture"),
    ),
    "meal_v2": Method("MEAL V2", "2009.08453", "arithmetic mean of teachers", ("mix_teachers",)),
    "cv_dd": Method(
        "Committee voting", "2501.07575", "teachers weighted by accuracy", ("prior_weights", "mix_teachers")
    ),
    "guided_self_distillation": Method(
        "Even your Teacher Needs Guidance",
        "2102.13088",
        "a floor of verified data in every round of self-distillation, its weight by line search",
        ("ground_truth_weight", "per_sample_mixture"),
    ),
    "data_pruning": Method(
        "Distilling the Knowledge in Data Pruning",
        "2403.07854",
        "one mixing weight of teacher and target, larger the less data is kept",
        ("per_sample_mixture",),
    ),
    "alm": Method(
        "ALM, across tokenizers",
        "2503.20083",
        "byte-aligned chunks, binary divergence of their likelihoods, debiased at the boundary",
        (
            "byte_spans",
            "align_chunks",
            "chunk_logprobs",
            "alm",
            "boundary_logmass",
            "merge_uncertain",
            "gradient_magnitude_weights",
        ),
    ),
    "alphamed": Method(
        "AlphaMed",
        "2505.17952",
        "GRPO on a binary multiple-choice outcome",
        ("group_advantages", "clipped_surrogate", "reduce"),
    ),
    "deepmath": Method(
        "DeepMath-103K recipes",
        "2504.11456",
        "GRPO with DAPO's parts: clip-higher, token mean, overlong penalty; without the scripts' filter of "
        "groups by outcome",
        ("group_advantages", "clipped_surrogate", "reduce", "groups_with_signal", "soft_overlong_penalty"),
    ),
}
