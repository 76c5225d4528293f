"""Studies: what both papers measured, on anybody's cohort, with simple methods beside the harmonizer.

A study is one function, `STUDY(inputs, settings) -> StudyResult`, in the module of its name, with a
`check(cohort, settings)` that refuses what cannot be done before a scan is read:

    pooled      Komandur 2023, Tables 2 and 3       diagnosis   Bashyam 2020, Table 2
    transfer    Bashyam 2020, Table 1 and Figure 2  appearance  Bashyam Figure 1, Komandur Figure 2
    audit       what neither paper asked: can the site still be told, is the anatomy still there

    inputs : `datasets.ModelInputs`, every scan on one grid, (n, D, H, W) float32 in [0, 1].
    settings : `presets.StudySettings`: reference site, seeds, preset, system, folders.

What studies are made of, from the bottom up:

    presets.py      StudyPreset (sizes and schedules), StudySettings, `split_cohort`: one (training, test)
                    pair of ModelInputs a seed, whole subjects; `check_cohort` and `refuse_leak`
    trained_harmonizer.py
                    a bundle or checkpoint that is judged: on the grid, and as hz-run writes
    method.py       Method: `name`, `seen`, `fit(training, reference)`, `apply(volumes, sites)`; the
                    CycleGANs of both systems; `methods(settings, seed)`: all of them, unfitted, raw first,
                    then the other baselines, then the harmonizers
    baselines.py    Raw, ZScore, Nyul: what needs no network; Blocks and ComBat, which give features
    combat.py       ComBat itself
    held_out.py     predictions of held-out scans, refused where a leak would flatter them
    predictors.py   age or diagnosis from volumes: the networks of both systems; ridge on block means
    tables.py       metrics with bootstrap intervals over subjects; `summarised`: mean and range over seeds
    truth.py, views.py, similarity.py, anatomy.py
                    paired truth and label maps on the grid; the same scans through every method; SSIM;
                    tissue volumes and boundaries
    classifier.py, predictability.py
                    who tells sites apart, frozen, re-seeded and converged; cross-validated, with scrambled
                    sites as the control
    native_scans.py, normalization.py, tissue_labels.py
                    scans at their own resolution through every method, one at a time; N4 and what follows
                    it; label maps of tissues and regions
    native_appearance.py, variation.py, discriminant.py
                    written volumes: how tissues vary, between sites and within; sites told from them
    native_audit.py, lesions.py, atrophy.py
                    written volumes: what was planted, and what is left of it
    overlap.py, comparison.py, estimate.py
                    overlap of sites in few dimensions; rows of the audit; intervals over subjects
    charts.py, figures.py
                    pictures as `result.Figure`, drawn by matplotlib
    result.py       Metric, Row, Column, Table, Figure, StudyResult; `write_result`: TSV, JSON, pictures
    page.py         the HTML page; `write_page`

A study in outline:

    def example(inputs: ModelInputs, settings: StudySettings) -> StudyResult:
        rows = []
        for seed in settings.seeds:
            training, test = split_cohort(inputs, settings.held_out, seed)
            for method in methods(settings, seed):
                method.fit(training, settings.reference)
                refuse_leak(method.name, method.seen, test)
                made = method.apply(test.grids, [s.site for s in test.scans])
                rows.append(Row(method.name, "all sites", {"error": Metric(...)}, n=..., seed=seed))
        table = Table("example", "Title", "Caption.", (Column("error", "Error", digits=3, better="lower"),),
                      tuple(summarised(rows)))
        return StudyResult("example", "Title", "Question?", (table,), settings=settings.described(), ...)

Whoever is scored was held out from everything that was fitted: from the harmonizer, from the baselines'
landmarks, and from the predictor. Methods and predictors list whom they saw (`seen`: subjects and file
hashes), and `refuse_leak` raises where a scored scan is among them.
"""
