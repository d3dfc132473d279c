//go:build tools

// Package tools names what ./build compiles, so that `go mod tidy` keeps its modules in go.mod and go.sum.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
