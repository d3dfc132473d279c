//go:build tools

// Package kubernetes names what ./build compiles, so that `go mod tidy` keeps its modules in go.mod and go.sum.
package kubernetes

import _ "k8s.io/kubernetes/cmd/kubelet"
