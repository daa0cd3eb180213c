// Renders a Modelfile's TEMPLATE on chats as Ollama does: text/template over Messages, Think and IsThinkSet, with
// consecutive messages of one role already joined. Reads {"template", "chats": [{"messages", "think"}]}, writes texts;
// also the think tags as Ollama infers them: the first and last text of the list around {{ .Thinking }}.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
)

type message struct{ Role, Content, Thinking string }

type chat struct {
	Messages []message
	Think    *bool
}

func tags(node parse.Node, list *parse.ListNode) []string {
	switch n := node.(type) {
	case *parse.ListNode:
		for _, inner := range n.Nodes {
			if found := tags(inner, n); found != nil {
				return found
			}
		}
	case *parse.RangeNode:
		return tags(n.List, nil)
	case *parse.IfNode:
		if found := tags(n.List, nil); found != nil {
			return found
		}
		if n.ElseList != nil {
			return tags(n.ElseList, nil)
		}
	case *parse.ActionNode:
		if n.String() == "{{.Thinking}}" {
			first, last := list.Nodes[0], list.Nodes[len(list.Nodes)-1]
			return []string{strings.TrimSpace(first.String()), strings.TrimSpace(last.String())}
		}
	}
	return nil
}

func main() {
	var input struct {
		Template string
		Chats    []chat
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Parse(input.Template))
	texts := []string{}
	for _, one := range input.Chats {
		var out strings.Builder
		values := map[string]any{"Messages": one.Messages, "IsThinkSet": one.Think != nil, "Think": one.Think == nil || *one.Think}
		if err := parsed.Execute(&out, values); err != nil {
			panic(err)
		}
		texts = append(texts, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"texts": texts, "tags": tags(parsed.Tree.Root, nil)})
}
