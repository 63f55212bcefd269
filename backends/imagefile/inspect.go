package imagefile

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

// MaxValue bounds each value of an Inspect, in bytes; longer ones are cut.
const MaxValue = 1 << 20

// The sources of an Inspect.
const (
	FromSIF      = "sif"      // data objects of the SIF
	FromSquashfs = "squashfs" // files of the root file system
)

// Inspect is what an image says about itself, as "apptainer inspect --all"
// shows it. A field that the image does not have is empty.
type Inspect struct {
	Labels  map[string]string
	Deffile string
	// Runscript, Help and Test are the files' texts.
	Runscript, Help, Test string
	// Environment is the text of the image's environment files, in the order in
	// which the runtime sources them.
	Environment string
	// Arch is the architecture by Go's name, or empty.
	Arch string
	// Source is FromSIF or FromSquashfs.
	Source string
}

// ReadInspect reads what the image of size bytes says about itself: from the data
// objects of a SIF when its builder stored them, else from the files under
// /.singularity.d of its squashfs. That takes about five reads and, beside the
// tables, a few hundred KiB, however large the image; at most 256 reads and 32 MiB
// whatever the bytes say. r sees reads of 1 MiB at most.
//
// ctx is looked at before each read. An ext3 or encrypted root is
// Unsupported, a file that is no image Invalid, one that contradicts itself or
// ends early Corrupt; errors of r are returned wrapped.
func ReadInspect(ctx context.Context, r io.ReaderAt, size int64) (Inspect, error) {
	s := newSource(ctx, r, size)
	info, err := identify(s)
	if err != nil {
		return Inspect{}, err
	}
	switch info.Kind {
	case SIF:
		return inspectSIF(s)
	case Squashfs:
		super, err := s.read(info.Offset, squashHeaderLen, 0)
		if err != nil {
			return Inspect{}, err
		}
		q, err := parseSquash(super, info.Offset)
		if err != nil {
			return Inspect{}, err
		}
		return inspectSquashfs(newSquashReader(s, q))
	case Ext3:
		return Inspect{}, unsupported("an ext3 image")
	}
	return Inspect{}, corrupt("the image's header is not there yet")
}

func inspectSIF(s *source) (Inspect, error) {
	img, err := readSIF(s)
	if err != nil {
		return Inspect{}, err
	}
	if img.info.Need < 0 && len(img.objects) == 0 {
		return Inspect{}, corrupt("the image's header is not there yet")
	}
	found := Inspect{Arch: img.info.Arch, Source: FromSIF}
	deffile, err := img.text(s, sifDeffile, "")
	if err != nil {
		return Inspect{}, err
	}
	stored, err := img.text(s, sifGenericJSON, inspectObject)
	if err != nil {
		return Inspect{}, err
	}
	if parseInspect(stored, &found) {
		if found.Deffile == "" {
			found.Deffile = deffile
		}
		return found, nil
	}
	if img.root == nil {
		if deffile == "" {
			return Inspect{}, unsupported("a root file system that is encrypted or no squashfs")
		}
		found.Deffile = deffile
		return found, nil
	}
	found, err = inspectSquashfs(newSquashReader(s, *img.root))
	found.Arch = img.info.Arch
	if deffile != "" {
		found.Deffile = deffile
	}
	return found, err
}

// text gives a data object's text, cut at MaxValue; "" when there is none.
func (img *sifImage) text(s *source, kind uint32, name string) (string, error) {
	e, ok := img.find(kind, name)
	if !ok {
		return "", nil
	}
	b, err := s.read(e.Off, min(e.Len, MaxValue), 0)
	return strings.TrimRight(string(b), "\x00"), err
}

// parseInspect reads the inspect JSON into out and reports whether it was that.
func parseInspect(text string, out *Inspect) bool {
	var stored struct {
		Data struct {
			Attributes struct {
				Labels      map[string]any    `json:"labels"`
				Environment map[string]string `json:"environment"`
				Deffile     string            `json:"deffile"`
				Runscript   string            `json:"runscript"`
				Helpfile    string            `json:"helpfile"`
				Test        string            `json:"test"`
			} `json:"attributes"`
		} `json:"data"`
	}
	if text == "" || json.Unmarshal([]byte(text), &stored) != nil {
		return false
	}
	a := stored.Data.Attributes
	out.Labels = textLabels(a.Labels)
	// Decoding can lengthen text: a byte that is no UTF-8 becomes three.
	out.Deffile, out.Runscript, out.Help, out.Test = cut(a.Deffile), cut(a.Runscript), cut(a.Helpfile), cut(a.Test)
	var files []string
	for name := range a.Environment {
		files = append(files, name)
	}
	slices.Sort(files)
	for _, name := range files {
		appendText(&out.Environment, a.Environment[name])
	}
	return true
}

// parseLabels reads labels.json; nil when it is none.
func parseLabels(text string) map[string]string {
	var labels map[string]any
	if text == "" || json.Unmarshal([]byte(text), &labels) != nil {
		return nil
	}
	return textLabels(labels)
}

// textLabels keeps strings as they are and gives other values as JSON: people
// write numbers and booleans into their labels.
func textLabels(labels map[string]any) map[string]string {
	if labels == nil {
		return nil
	}
	out := make(map[string]string, len(labels))
	for name, value := range labels {
		if s, ok := value.(string); ok {
			out[name] = cut(s)
		} else if b, err := json.Marshal(value); err == nil {
			out[name] = cut(string(b))
		}
	}
	return out
}

func appendText(to *string, text string) {
	if *to != "" && !strings.HasSuffix(*to, "\n") {
		*to += "\n"
	}
	*to = cut(*to + text)
}

func cut(s string) string { return s[:min(len(s), MaxValue)] }

// inspectSquashfs reads the files that the runtimes' own inspect command
// reads; before Singularity 2.3 the root itself held the two that existed.
func inspectSquashfs(r *squashReader) (Inspect, error) {
	found := Inspect{Source: FromSquashfs}
	root, err := r.dir(r.root())
	if err != nil {
		return Inspect{}, absentIsCorrupt(err)
	}
	meta, err := r.subdir(root, ".singularity.d")
	if err != nil {
		return Inspect{}, err
	}
	if meta == nil {
		if err := r.texts(root, map[string]*string{
			"singularity": &found.Runscript,
			"environment": &found.Environment,
		}); err != nil {
			return Inspect{}, err
		}
		return found, nil
	}
	var labels string
	if err := r.texts(meta, map[string]*string{
		"labels.json":    &labels,
		"Singularity":    &found.Deffile,
		"runscript":      &found.Runscript,
		"runscript.help": &found.Help,
		"test":           &found.Test,
	}); err != nil {
		return Inspect{}, err
	}
	found.Labels = parseLabels(labels)
	found.Environment, err = r.environment(meta)
	return found, err
}

// environment joins the files that the runtimes' inspect command shows.
func (r *squashReader) environment(meta map[string]inodeRef) (string, error) {
	env, err := r.subdir(meta, "env")
	if err != nil {
		return "", err
	}
	var names []string
	for name := range env {
		docker, _ := path.Match("10-docker*.sh", name)
		own, _ := path.Match("9*-environment.sh", name)
		if docker || own {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	joined := ""
	for _, name := range names {
		if len(joined) >= MaxValue {
			break
		}
		var text string
		if err := r.texts(env, map[string]*string{name: &text}); err != nil {
			return "", err
		}
		appendText(&joined, text)
	}
	return joined, nil
}

// subdir lists the directory of that name; nil when there is none.
func (r *squashReader) subdir(in map[string]inodeRef, name string) (map[string]inodeRef, error) {
	ref, ok := in[name]
	if !ok {
		return nil, nil
	}
	entries, err := r.dir(ref)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

// texts reads the regular files of those names; an absent one leaves its
// string as it is.
func (r *squashReader) texts(in map[string]inodeRef, files map[string]*string) error {
	for name, to := range files {
		ref, ok := in[name]
		if !ok {
			continue
		}
		b, err := r.file(ref, MaxValue)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		*to = string(b)
	}
	return nil
}

func absentIsCorrupt(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return corrupt("the root is no directory")
	}
	return err
}

func unsupported(what string) error {
	return backends.Errorf("inspect", backends.Ref{}, backends.Unsupported, "%s cannot be inspected without its runtime", what)
}
