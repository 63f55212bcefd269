// Package all is the table of drivers. Only the command imports it, so that
// nothing else depends on what kinds of registries there are.
package all

import (
	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/dir"
	httpindex "github.com/sregistry/sregistry-fs/backends/http"
	"github.com/sregistry/sregistry-fs/backends/registry"
)

// Drivers gives every driver, in the order in which people are shown them.
func Drivers() []backends.Driver {
	return []backends.Driver{
		registry.Driver(),
		httpindex.Driver(),
		dir.Driver(),
	}
}
