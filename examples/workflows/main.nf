// hz-run as a Nextflow workflow: shards side by side, then one table and report.
//
//     nextflow run examples/workflows/main.nf --scans study --out harmonized --shards 8
//
// --more "--prepare --model site.hz" adds options of hz-run, which writes results into --out itself, on a file
// system that all tasks share: no copy of them passes through work/. Exit code 3 (some scans failed, the rest
// is complete) ends no workflow: the table names those scans.

nextflow.enable.dsl = 2

params.scans = null
params.out = "harmonized"
params.shards = 4
params.more = ""

process shard {
    cpus 2
    errorStrategy "retry"
    maxRetries 2

    input:
    val index
    val scans
    val out

    output:
    val index

    script:
    """
    hz-run '${scans}' --out '${out}' ${params.more} --threads ${task.cpus} \\
        --shard ${index}/${params.shards} --plain || test \$? -eq 3
    """
}

process gather {
    input:
    val done
    val out

    output:
    stdout

    script:
    """
    hz-run gather '${out}' || test \$? -eq 3
    """
}

workflow {
    if (params.scans == null) {
        error "name the folder of scans:  --scans DIR"
    }
    scans = file(params.scans).toAbsolutePath().toString()
    out = file(params.out).toAbsolutePath().toString()
    shard(Channel.of(1..(params.shards as int)), scans, out)
    gather(shard.out.collect(), out)
    gather.out.view()
}
