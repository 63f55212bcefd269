# sregistry-fs. The two commands to know: `make demo` and `make test`.
GO      ?= go
BIN     := bin/sregistry-fs
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# The race detector needs a C compiler; without one the tests run without it.
RACE    := $(shell command -v $${CC:-cc} >/dev/null 2>&1 && echo -race)

.PHONY: build demo test check fmt interop bench clean help

build: ## build bin/sregistry-fs
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN) ./cmd/sregistry-fs

demo: build ## make an image, mount a folder of images, use it, unmount
	@sh docs/demo.sh $(abspath $(BIN))

test: ## every test, with the race detector where there is a C compiler
	$(GO) test $(RACE) -timeout 20m ./...

check: ## vet, staticcheck, formatting
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) vet -tags bench ./cmd/sregistry-fs/bench
	$(GO) tool staticcheck -tags bench ./cmd/sregistry-fs/bench
	@out="$$($(GO) tool gofumpt -l $$(git ls-files '*.go'))"; test -z "$$out" || { echo "not formatted (make fmt):"; echo "$$out"; exit 1; }

fmt: ## format the code
	$(GO) tool gofumpt -w $$(git ls-files '*.go')

interop: ## run the published Python client against our registry server and our mount
	$(GO) test -tags interop -count=1 -timeout 20m -run 'TestPython' -v ./backends/registry/ ./cmd/sregistry-fs/

bench: ## tables against curl, rclone and s3fs, ~15 min (BENCH_QUICK=1: does it run?, BENCH_WRITE=1: write docs/benchmarks.md)
	$(GO) test -tags bench -count=1 -timeout 60m -v ./cmd/sregistry-fs/bench

clean: ## remove what was built
	rm -rf bin dist

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
