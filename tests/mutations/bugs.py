"""The registry: known bugs of DP-SGD implementations, each as an edit of the real code.

A bug that can be made on several of the three paths (written out, per-sample, ghost) is made on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mutations.planting import Edit

DEVIATION = "fedsim.core.training.dp:_Round.deviation"
STEP = "fedsim.core.training.dp:_make_steps"
CLIPPED_SUM = "fedsim.core.training.clipping:write_clipped_sum"
PER_SAMPLE_SUM = "fedsim.core.training.clipping:write_per_sample_clipped_sum"
GHOST_SUM = "fedsim.core.training.clipping:write_ghost_clipped_sum"
DRAWS = "fedsim.core.training.draws:PartyDraws"
PARTY = "clients.dp"
PARTY_DRAWS = "clients.draws"


@dataclass(frozen=True)
class Bug:
    """One way to get DP-SGD wrong.

    what: what goes wrong, one sentence
    source: where the field made it, or warns of it
    edits: the bug, as text replaced in the real code
    checks: the unit checks that catch it, all of them, on every path
    audited: whether the audit catches it (see `mutations.audited`)
    """

    name: str
    what: str
    source: str
    edits: tuple[Edit, ...]
    checks: frozenset[str]
    audited: bool

    @property
    def in_training(self) -> bool:
        """Whether it sits in the steps themselves, which each path makes in its own way."""
        return any(edit.where.startswith("fedsim.core.training.") for edit in self.edits)


def _bug(name: str, what: str, source: str, edits: list[Edit], checks: str, audited: bool = False) -> Bug:
    return Bug(name, what, source, tuple(edits), frozenset(checks.split()), audited)


BUGS = (
    _bug(
        "no noise",
        "The clipped sum is used as it is.",
        "DPBayes/ADADP pull request 3: at batch_proc_size = 1 no noise was added",
        [
            Edit(
                DEVIATION,
                "self.plan.gradient_noise * self.norm.value",
                "0.0",
            )
        ],
        "noise_has_standard_deviation_sigma_c noise_of_rounds_and_parties_is_independent "
        "adaptive_clipping_is_paid",
        audited=True,
    ),
    _bug(
        "noise not scaled by the clipping norm",
        "The noise has standard deviation σ, not σC: too little for C > 1.",
        "'Finding private bugs' (ICLR 2023 submission): noise miscalibration",
        [
            Edit(
                DEVIATION,
                "self.plan.gradient_noise * self.norm.value",
                "self.plan.gradient_noise",
            )
        ],
        "noise_has_standard_deviation_sigma_c noise_of_rounds_and_parties_is_independent",
        audited=True,
    ),
    _bug(
        "noise divided by the batch twice",
        "The noise for the mean is added to the sum, which is then divided by the batch size once more.",
        "Tramèr et al. 2022 (arXiv:2202.12219): sensitivity wrong by the batch size; ε = 0.21 was over 2.79",
        [
            Edit(
                DEVIATION,
                "self.plan.gradient_noise * self.norm.value",
                "self.plan.gradient_noise * self.norm.value / self.plan.expected_batch",
            )
        ],
        "noise_has_standard_deviation_sigma_c noise_of_rounds_and_parties_is_independent "
        "adaptive_clipping_is_paid",
        audited=True,
    ),
    _bug(
        "clip per batch",
        "The mean gradient of the batch is clipped to C, not each record's.",
        "'Finding private bugs' (ICLR 2023 submission): improper gradient computation; "
        "tensorflow/privacy issue 81: microbatches larger than one record",
        [
            Edit(
                CLIPPED_SUM,
                "norms = stack.gradient_norms(errors)",
                "stack.accumulate(errors)\n"
                "    norms = (stack.gradient.norm() / max(1, len(x))).repeat(len(x))",
            ),
            Edit(
                PER_SAMPLE_SUM,
                "norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)",
                "mean = torch.cat([p.grad_sample.mean(0).flatten() for p in parameters])\n"
                "    norms = mean.norm().repeat(len(x))",
            ),
            Edit(
                GHOST_SUM,
                "norms = private.get_norm_sample()",
                "norms = (torch.cat([p.grad.flatten() for p in parameters]).norm() / len(x)).repeat(len(x))",
            ),
        ],
        "one_record_moves_the_sum_by_c_at_most inclusion_is_binomial",
        audited=True,
    ),
    _bug(
        "clip per layer",
        "Each layer's gradient is clipped to C by itself: the whole has norm C√L.",
        "fedbiomed issue 1443: its central DP clips each parameter, not the global norm",
        [
            Edit(
                CLIPPED_SUM,
                "[error * factor[:, None] for error in errors]",
                "[e * clipping_factors(e.norm(dim=1) * a.norm(dim=1), clipping_norm)[:, None]"
                " for e, a in zip(errors, stack._inputs)]",
            ),
            Edit(
                PER_SAMPLE_SUM,
                "factor, p.grad_sample)",
                "clipping_factors(p.grad_sample.flatten(1).norm(dim=1), clipping_norm), p.grad_sample)",
            ),
            Edit(
                GHOST_SUM,
                "norms = private.get_norm_sample()",
                "norms = private.get_norm_sample()\n"
                "    of_layers = [clipping_factors(p._norm_sample, clipping_norm) for p in parameters]",
            ),
            Edit(
                GHOST_SUM,
                "of_records.mul(clipping_factors(norms, clipping_norm)).sum().backward()",
                "for p, factors in zip(parameters, of_layers):\n"
                "        clipped = of_records.mul(factors).sum()\n"
                "        p.grad = torch.autograd.grad(clipped, p, retain_graph=True)[0]",
            ),
        ],
        "one_record_moves_the_sum_by_c_at_most",
    ),
    _bug(
        "divided by the batch drawn",
        "The noisy sum is divided by the number of records drawn, which then shows in the noise.",
        "meta-pytorch/opacus issue 420 asks for it; the expected batch size is the one that is public",
        [
            Edit(STEP, "clipped.step(plan.expected_batch)", "clipped.step(max(1, len(x)))"),
        ],
        "noise_has_standard_deviation_sigma_c one_record_moves_the_sum_by_c_at_most inclusion_is_binomial",
    ),
    _bug(
        "empty batches left out",
        "A step in which nobody was drawn is skipped: that nothing moves tells that nobody was drawn.",
        "loops over torch's DataLoader, which has no empty batches",
        [
            Edit(
                "fedsim.core.training.steps:make_steps",
                "enumerate(batches)",
                "enumerate(batch for batch in batches if len(batch[0]))",
            )
        ],
        "noise_has_standard_deviation_sigma_c adaptive_clipping_is_paid",
    ),
    _bug(
        "one draw of noise for all parameters",
        "Every layer is given the same noise, so that layers tell each other's gradients.",
        "jax-ml/jax pull request 3646: the DP example used one PRNG key for all parameters",
        [
            Edit(
                f"{DRAWS}.noise",
                "for piece in pieces:\n",
                "state = self._noise.get_state()\n"
                "    for piece in pieces:\n"
                "        self._noise.set_state(state)\n",
            ),
        ],
        "noise_of_parameters_is_independent",
    ),
    _bug(
        "shuffled batches, accounted as Poisson",
        "Batches of a fixed size are cut from a permutation; the accounting's amplification does not hold.",
        "Chua et al. 2024 (arXiv:2403.17673); tensorflow/privacy issue 483; private-transformers issue 7",
        [
            Edit(
                f"{DRAWS}.poisson",
                "yield (coins < plan.sample_rate).nonzero()",
                "size = round(plan.sample_rate * n)\n"
                "        first = _ * size % n\n"
                "        again = _ == 0 or first < size\n"
                "        order = torch.randperm(n, generator=self._order) if again else order\n"
                "        drawn = torch.zeros(n, dtype=torch.bool)\n"
                "        drawn[order[first:][:size]] = True\n"
                "        yield drawn.nonzero()",
            ),
        ],
        "inclusion_is_binomial",
    ),
    _bug(
        "adaptive clipping without noise",
        "The clipping norm follows the exact count of the gradients that are shorter.",
        "Andrew et al. 2021 (arXiv:1905.03871), section 2.2, whose point is that this count is private",
        [
            Edit(
                "fedsim.core.training.dp:AdaptiveNorm.follow",
                "float(count + noise)",
                "float(count)",
            )
        ],
        "adaptive_clipping_is_paid",
    ),
    _bug(
        "adaptive clipping not paid",
        "The noisy count comes on top of gradients whose noise costs all of ε already.",
        "Andrew et al. 2021 (arXiv:1905.03871), theorem 1, left out",
        [Edit("fedsim.core.privacy.plan:Plan.gradient_noise", 'if self.clipping == "flat" or', "if True or")],
        "adaptive_clipping_is_paid",
    ),
    _bug(
        "ε of one round reported as the run's",
        "Each round reports what its own steps cost.",
        "Flower's Opacus example reports it",
        [
            Edit(
                f"{PARTY}:train_privately",
                'return {"epsilon": ledger.epsilon',
                'return {"epsilon": plan.spend(Ledger(), report.steps).epsilon',
            )
        ],
        "reported_epsilon_is_that_of_all_rounds",
        audited=True,
    ),
    _bug(
        "accountant reset",
        "Every round begins with an empty ledger, as a new PrivacyEngine per round does.",
        "clients that keep no state between rounds",
        [
            Edit(
                f"{PARTY}:ledger_of",
                'return Ledger.from_config(dict(messages.config_in(context.state, "ledger")))',
                "return Ledger()",
            )
        ],
        "reported_epsilon_is_that_of_all_rounds spent_budget_ends_training",
        audited=True,
    ),
    _bug(
        "rounds counted as steps",
        "The noise is solved for as many steps as there are rounds.",
        "FLamby's federated DP: epochs = rounds, of 100 batches each; a claimed ε = 1 was 1.5 to 4.5",
        [Edit("fedsim.core.privacy.plan:make_plan", "total = per_round * rounds", "total = rounds")],
        "planned_epsilon_is_that_of_all_rounds",
        audited=True,
    ),
    _bug(
        "budget not enforced",
        "A party whose ε is spent goes on training.",
        "accountants that report and do not refuse, such as Opacus'",
        [Edit(f"{PARTY}:refusal", "if not would_exceed(ledger, plan):", "if True:")],
        "spent_budget_ends_training",
    ),
    _bug(
        "BatchNorm",
        "A model in which records see each other's features is trained as if each had a gradient of its own.",
        "refused by Opacus' ModuleValidator, which hand-written loops do not have",
        [
            Edit("fedsim.core.models.private:check_dp_ready", "problem = _dp_problem(layer)", 'problem = ""'),
            Edit("fedsim.core.models.private:check_dp_ready", "if input_shape is None:", "if True:"),
        ],
        "batch_norm_is_refused",
    ),
    _bug(
        "momentum leaks over the switch",
        "The optimizer's state outlives the round: gradients of a round without DP move those with DP.",
        "any loop that keeps its optimizer while DP is switched on",
        [
            Edit(
                "fedsim.core.training.optimizers:_sgd",
                "velocity = torch.zeros_like(flat)",
                "velocity = _sgd.__dict__.setdefault(len(flat), torch.zeros_like(flat))",
            ),
            Edit(
                "fedsim.core.training.optimizers:torch_optimizer",
                "return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, "
                "weight_decay=settings.l2)",
                "made = torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, "
                "weight_decay=settings.l2)\n"
                "    for i, p in enumerate(parameters if settings.momentum else []):\n"
                "        kept = torch_optimizer.__dict__.setdefault((i, p.shape), torch.zeros_like(p))\n"
                "        made.state[p]['momentum_buffer'] = kept\n"
                "    return made",
            ),
        ],
        "a_private_round_depends_on_its_inputs_only",
    ),
    _bug(
        "private mean used for scaling",
        "Features are scaled by the mean and deviation of the private records.",
        "Annamalai et al. 2024 (arXiv:2405.10994): metadata and pre-processing of DP synthetic data; "
        "every StandardScaler fitted on the training set",
        [
            Edit(
                "fedsim.core.data.encode:_number",
                "values = numeric(cells)",
                "values = numeric(cells)\n"
                "    centre, spread = np.nanmean(values), np.nanstd(values)\n"
                "    low, high = centre - 2 * spread, centre + 2 * spread",
            )
        ],
        "encoding_ignores_other_records",
    ),
    _bug(
        "same noise seed every round",
        "Two rounds add the same noise: their difference has none.",
        "what a generator seeded anew in each round's make_private does",
        [
            Edit(
                f"{PARTY_DRAWS}:draws_of",
                '_stream(party, "dp noise", round)',
                '_stream(party, "dp noise", 0)',
            )
        ],
        "noise_of_rounds_and_parties_is_independent",
        audited=True,
    ),
    _bug(
        "same noise seed at every party",
        "A participant subtracts from another's update the noise that it drew itself.",
        "torch.manual_seed(0) in every client",
        [Edit(f"{PARTY_DRAWS}:_stream", "party=party.name", 'party=""')],
        "noise_of_rounds_and_parties_is_independent",
    ),
    _bug(
        "gradient norm as a metric",
        "The norm of the gradient before clipping is answered beside the weights, for monitoring.",
        "adaptive clipping and dashboards; Andrew et al. 2021 (arXiv:1905.03871) pay for such a statistic",
        [
            Edit(
                f"{PARTY}:train_privately",
                "    ledger = plan.spend(ledger_of(context), report.steps)",
                "    import torch\n"
                "    x, y = dp.tensors(party.records.train)\n"
                "    loss = torch.nn.functional.cross_entropy(party.module(x), y)\n"
                "    gradient = torch.autograd.grad(loss, list(party.module.parameters()))\n"
                "    norm = float(sum(g.square().sum() for g in gradient)) ** 0.5\n"
                "    ledger = plan.spend(ledger_of(context), report.steps)",
            ),
            Edit(f"{PARTY}:train_privately", '"train-loss": math.nan', '"gradient-norm": norm'),
        ],
        "answers_say_nothing_of_records",
    ),
    _bug(
        "training loss as a metric",
        "The loss on the private records is answered beside the weights.",
        "Flower's quickstarts answer train_loss",
        [
            Edit(
                f"{PARTY}:train_privately",
                "    _enter(context, ledger)",
                "    _enter(context, ledger)\n    from fedsim.core.training.metrics import evaluate",
            ),
            Edit(
                f"{PARTY}:train_privately",
                '"train-loss": math.nan',
                '"train-loss": evaluate(party.module, party.records.train)["loss"]',
            ),
        ],
        "answers_say_nothing_of_records",
    ),
)
