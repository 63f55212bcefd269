package imagetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sylabs/sif/v2/pkg/sif"
)

// SIF writes a SIF image into dir and returns its path: a definition file, the
// inspect JSON and a primary system partition, in the order in which
// Singularity and Apptainer write them.
func SIF(t testing.TB, dir string, o Options) string {
	t.Helper()
	part := filepath.Join(t.TempDir(), "root.squashfs")
	squashfs(t, tree(t, o), part, o)
	f, err := os.Open(part)
	check(t, err)
	defer f.Close()

	in := o.inspect()
	var objects []sif.DescriptorInput
	add := func(d sif.DescriptorInput, err error) {
		t.Helper()
		check(t, err)
		objects = append(objects, d)
	}
	if !o.NoDeffile {
		add(sif.NewDescriptorInput(sif.DataDeffile, strings.NewReader(in.Deffile)))
	}
	if !o.NoJSON {
		add(sif.NewDescriptorInput(sif.DataGenericJSON, strings.NewReader(InspectJSON(t, in)),
			sif.OptObjectName("inspect-metadata.json")))
	}
	arch := o.Arch
	if arch == "" {
		arch = "amd64"
	}
	kind := sif.FsSquash
	if o.Encrypted {
		kind = sif.FsEncryptedSquashfs
	}
	add(sif.NewDescriptorInput(sif.DataPartition, f, sif.OptPartitionMetadata(kind, sif.PartPrimSys, arch)))

	out := filepath.Join(dir, name(o, "image.sif"))
	img, err := sif.CreateContainerAtPath(out,
		sif.OptCreateDeterministic(),
		sif.OptCreateWithLaunchScript(LaunchLine),
		sif.OptCreateWithDescriptors(objects...))
	check(t, err)
	check(t, img.UnloadContainer())
	return out
}

// InspectJSON is the JSON that "apptainer inspect --all" prints for in, and
// that the builders store in a SIF.
func InspectJSON(t testing.TB, in Inspect) string {
	t.Helper()
	attributes := map[string]any{"labels": in.Labels}
	for key, value := range map[string]string{
		"deffile": in.Deffile, "runscript": in.Runscript, "helpfile": in.Help, "test": in.TestText,
	} {
		if value != "" {
			attributes[key] = value
		}
	}
	if in.Environment != "" {
		attributes["environment"] = map[string]string{"/.singularity.d/env/90-environment.sh": in.Environment}
	}
	b, err := json.Marshal(map[string]any{"data": map[string]any{"attributes": attributes}, "type": "container"})
	check(t, err)
	return string(b)
}
