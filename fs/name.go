package fs

import (
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

// nameForm is what people are told when a name is no image.
const nameForm = "an image is named image:tag.simg (also image.sif, image:tag), scratch files start with '.' or end in .tmp, .part or ~"

// target is one way to read a file name: an image, and with version set
// exactly that version of it.
type target struct {
	backends.Ref
	version string
}

// isScratch reports whether name lives only in this mount: tools write such
// files aside and rename them. It never reaches the registry.
func isScratch(name string) bool {
	if strings.HasPrefix(name, ".") {
		return true
	}
	for _, suffix := range []string{".tmp", ".part", "~"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// targets reads a directory entry's name as an image of collection: the
// canonical form image:tag.simg, the same with .sif or .img, a tag without an
// extension, an extension without a tag (latest), each with an optional
// @version. The likeliest reading comes first; there are at most two, because a tag may end
// in what looks like an extension. A bare name and a scratch name have none.
func targets(collection, name string) []target {
	if collection == "" || isScratch(name) {
		return nil
	}
	var all []target
	add := func(s string) {
		var t target
		image, rest, tagged := strings.Cut(s, ":")
		if !tagged {
			image, t.version, _ = strings.Cut(image, "@")
			rest = backends.DefaultTag
		} else {
			rest, t.version, _ = strings.Cut(rest, "@")
		}
		t.Ref = backends.Ref{Collection: collection, Image: image, Tag: rest}
		if image != "" && t.Ref.Check() == nil {
			all = append(all, t)
		}
	}
	if isBare(name) {
		return nil
	}
	base := backends.TrimSuffix(name)
	add(base)
	if base != name && strings.Contains(name, ":") {
		add(name)
	}
	return all
}

// isBare reports whether name has neither a tag nor an image's extension: it
// is only ever a collection.
func isBare(name string) bool {
	return !strings.Contains(name, ":") && backends.TrimSuffix(name) == name
}

// probeNames are what desktops, editors and file managers look for in every
// directory they see. They are no collections and cost no request.
var probeNames = map[string]bool{
	"autorun.inf": true, "AutoRun.inf": true, "Autorun.inf": true, "desktop.ini": true, "Desktop.ini": true,
	"Thumbs.db": true, "folder.jpg": true, "cover.jpg": true, "BDMV": true, "VIDEO_TS": true, "AACS": true,
	"System Volume Information": true, "lost+found": true, "CVS": true, "RCS": true, "SCCS": true,
	"HEAD": true, "objects": true, "refs": true, "mimetype": true, "META-INF": true, "DCIM": true,
	"go.mod": true, "package.json": true, "Makefile": true, "tags": true,
}

// join gives the collection that is called name inside collection.
func join(collection, name string) string {
	if collection == "" {
		return name
	}
	return collection + "/" + name
}

// isCollectionName reports whether name can be a directory: bare, visible,
// and not what file managers probe for.
func isCollectionName(collection, name string) bool {
	return !isScratch(name) && !probeNames[name] && backends.CheckCollection(join(collection, name)) == nil
}
