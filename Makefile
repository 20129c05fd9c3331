# Targets with a "##" comment are listed by `make help`.

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT    ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE      ?= $(shell git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)
LDFLAGS   := -s -w -X orch/internal/version.Orch=$(VERSION) -X orch/internal/version.Commit=$(COMMIT) -X orch/internal/version.BuildDate=$(DATE)
# The embedded kubectl tells its own version: that of the k8s.io modules.
KUBECTL   := $(shell sed -n 's,^\tk8s.io/kubectl v0\.,1.,p' go.mod)
LDFLAGS   += $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,-X $(p).gitVersion=v$(KUBECTL) -X $(p).gitMajor=1 -X $(p).gitMinor=$(word 2,$(subst ., ,$(KUBECTL))) -X $(p).gitCommit=$(COMMIT) -X $(p).buildDate=$(DATE))
# Plugins and features of the libraries that orch has no use for.
TAGS      := no_btrfs,no_zfs,no_devmapper,no_aufs,no_tracing
GO        ?= go
# `make lint` vets; testing need not do it again.
TESTFLAGS ?= -race -vet=off
# What is in test/ drives the built executable; the race detector is of no use there.
ROOMS      = $(shell $(GO) list ./... 2>/dev/null | grep -v '^orch/test/')

.DEFAULT_GOAL := build

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

prerequisites: ## install what building and testing need, through the system's package manager
	@./scripts/prerequisites.sh

assets: prerequisites ## build the programs and images that are embedded
	@./runtime/embedded/build.sh

build: assets ## build bin/orch (the default)
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/orch .

install: build ## copy bin/orch to /usr/local/bin
	install -m 755 bin/orch /usr/local/bin/orch

# dist/ is laid out as install.sh looks for it: serve it as it is at RELEASES.
RELEASES  ?=
CHANNEL   ?= stable
ARCHS     ?= amd64 arm64
# A minisign secret key, and its public half (minisign.pub's second line), which executables and install.sh learn.
SIGNKEY   ?=
PUBLICKEY ?=
LDFLAGS   += $(if $(PUBLICKEY),-X orch/internal/version.ReleaseKey=$(PUBLICKEY))
DIST       = dist/$(VERSION)
release: prerequisites ## build dist/: executables for ARCHS, checksums (signed with SIGNKEY), install.sh that downloads from RELEASES
	@mkdir -p $(DIST) dist/channels
	@for arch in $(ARCHS); do \
		$(GO) run ./runtime/embedded/build -arch $$arch || exit 1; \
		overlay=; [ $$arch = $$($(GO) env GOHOSTARCH) ] || overlay="-overlay bin/embedded-$$arch/overlay.json"; \
		echo "release: orch $(VERSION) for $$arch"; \
		CGO_ENABLED=0 GOARCH=$$arch $(GO) build -trimpath $$overlay -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(DIST)/orch-$$arch . || exit 1; \
	done
	@sed 's|^default_releases=.*|default_releases=$(RELEASES)|; s|^default_public_key=.*|default_public_key=$(PUBLICKEY)|' scripts/install.sh >dist/install.sh && chmod 755 dist/install.sh && cp dist/install.sh $(DIST)/
	@cd $(DIST) && sha256sum orch-* install.sh >sha256sums.txt && cat sha256sums.txt
	@if [ -n "$(SIGNKEY)" ]; then \
		test -n "$(PUBLICKEY)" || { echo "release: SIGNKEY needs PUBLICKEY, which executables and install.sh check with"; exit 1; }; \
		minisign -S -s "$(SIGNKEY)" -m $(DIST)/sha256sums.txt && minisign -Vq -P "$(PUBLICKEY)" -m $(DIST)/sha256sums.txt; \
	else echo "release: not signed: give SIGNKEY and PUBLICKEY"; fi
	@echo $(VERSION) >dist/channels/$(CHANNEL)

test: build ## run every test: unit tests under the race detector, then end to end
	$(GO) test $(TESTFLAGS) -timeout 15m $(ROOMS)
	$(MAKE) test-e2e

# Most of the time these wait, so more of them run side by side than there are cores.
test-e2e: build ## run the end-to-end tests alone
	ORCH=$(CURDIR)/bin/orch $(GO) test -vet=off -timeout 15m -count=1 -parallel 6 ./test/...

cases: build ## do what strangers reported, step by step: one test for each file of test/cases/testdata; PODS=2000 for the long form of TestRandomPods
	PODS=$(PODS) ORCH=$(CURDIR)/bin/orch $(GO) test -vet=off -timeout 30m -count=1 -parallel 6 ./test/cases

test-short: build ## the unit tests alone, without the race detector
	$(GO) test -timeout 10m $(ROOMS)

lint: ## check formatting, vet, the house rules and the shell scripts
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt these files:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./test/house
	@if command -v shellcheck >/dev/null; then shellcheck $$(git ls-files '*.sh' ':!test/cases/testdata') .ci/run; else echo "lint: shellcheck is missing; run make prerequisites"; exit 1; fi

bench: build ## measure start, idle cost, API rates and pod start (prints a table)
	ORCH=$(CURDIR)/bin/orch $(GO) run ./test/bench

.PHONY: bench-scale
SIZES     ?= 100,500,1000,2000
bench-scale: build ## fill clusters of SIZES hollow nodes: memory, CPU, rates, latency (prints a table, draws docs/scale.svg)
	ORCH=$(CURDIR)/bin/orch $(GO) run ./test/bench -scale $(SIZES) -plot docs/scale.svg

FOR       ?= 10m
SEED      ?= 0
robustness: build ## hold three servers under faults to what the API promises, FOR=10m; SEED repeats a schedule
	ORCH=$(CURDIR)/bin/orch $(GO) test -vet=off -count=1 -timeout 0 -v ./test/robustness -run TestRobustness -for $(FOR) -seed $(SEED) -out $(CURDIR)/bin/robustness

abuse: build ## attack a server as hostile clients would for FOR=10m, and hold it to what it promises everybody else
	ORCH=$(CURDIR)/bin/orch $(GO) test -vet=off -count=1 -timeout 0 -v ./test/abuse -run TestAbuse -for $(FOR)

conformance: build ## run upstream's conformance suite; KIT names the folder of the built kit
	./test/conformance.sh

SERVERS   ?= 1
AGENTS    ?= 2
cluster: build ## start SERVERS and AGENTS on this machine, each in its own network namespace, until Ctrl-C
	ORCH=$(CURDIR)/bin/orch $(GO) run ./test/cluster/up -servers $(SERVERS) -agents $(AGENTS)

clean: ## remove what was built
	rm -rf bin dist runtime/embedded/assets/*.zst

.PHONY: help prerequisites assets build install release test test-e2e cases test-short lint bench robustness abuse conformance cluster clean
