module mlflow-stack/benchmarks/load

go 1.24
