package fs

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
)

// Document is the record of an image as JSON, in the shape that the Python
// client's get_metadata gives. inspect is nil when the image's own data is
// not known here. It holds no credential: neither do the record's fields.
func Document(backend string, rec backends.Record, inspect *imagefile.Inspect) []byte {
	attributes := map[string]any{}
	for key, value := range rec.Attributes {
		attributes[key] = value
	}
	labels := maps.Clone(rec.Labels)
	if inspect != nil {
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, inspect.Labels)
		for _, part := range inspectParts(*inspect) {
			if part.value != "" {
				attributes[part.name] = part.value
			}
		}
	}
	if len(labels) > 0 {
		attributes["labels"] = labels
	}
	doc := map[string]any{
		"client":     backend,
		"collection": rec.Collection,
		"image":      rec.Image,
		"tag":        rec.Tag,
		"version":    word(rec),
		"uri":        rec.Collection + "/" + rec.Image + ":" + rec.Tag,
		"url":        rec.URL,
		"storage":    rec.Collection + "/" + rec.FileName(),
		"data":       map[string]any{"attributes": attributes},
		"type":       "container",
	}
	if !rec.Digest.IsZero() {
		doc["digest"] = rec.Digest.String()
	}
	if rec.Size != backends.UnknownSize {
		doc["size"] = rec.Size
	}
	if !rec.Created.IsZero() {
		doc["created"] = rec.Created.UTC().Format(time.RFC3339)
	}
	if rec.Frozen {
		doc["frozen"] = true
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return []byte("{}") // maps of strings and numbers always encode
	}
	return out
}

// word is what the registry itself calls the version.
func word(rec backends.Record) string {
	if rec.Word != "" {
		return rec.Word
	}
	return rec.Version
}

type inspectPart struct{ name, value string }

func inspectParts(i imagefile.Inspect) []inspectPart {
	return []inspectPart{
		{"deffile", i.Deffile},
		{"runscript", i.Runscript},
		{"help", i.Help},
		{"environment", i.Environment},
		{"test", i.Test},
	}
}

func sizeText(size int64) string {
	if size == backends.UnknownSize {
		return "unknown"
	}
	return strconv.FormatInt(size, 10)
}

// xattrSafe makes a label's name usable in an attribute's name.
func xattrSafe(name string) string {
	return strings.Map(func(c rune) rune {
		if c == 0 || c == '\n' {
			return '_'
		}
		return c
	}, name)
}
